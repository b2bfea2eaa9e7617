# SPDX-License-Identifier: Apache-2.0
"""Shared parts of the registration bundles: fields, networks, losses, metrics, data and engines."""

__version__ = "0.2.0"
