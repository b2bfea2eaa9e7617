# SPDX-License-Identifier: Apache-2.0
"""Rigid and affine alignment of two scans by header and intensity."""
