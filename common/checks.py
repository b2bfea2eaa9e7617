# SPDX-License-Identifier: Apache-2.0
"""The one exception that is meant for the user's eyes."""

from __future__ import annotations


class InputError(ValueError):
    """Something that the user gave cannot be used; the message is one sentence that names it and says what to do."""
