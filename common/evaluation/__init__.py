# SPDX-License-Identifier: Apache-2.0
"""Displacement fields of any tool judged: which pairs, which files, their figures, finished runs side by side."""
