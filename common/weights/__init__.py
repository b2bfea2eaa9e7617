# SPDX-License-Identifier: Apache-2.0
"""Official checkpoints: how each family's are laid out, their import into a bundle and their export."""
