# SPDX-License-Identifier: Apache-2.0
"""Transforms and fields of other tools, one module per tool; ``reader`` and ``writer`` choose among them."""
