# SPDX-License-Identifier: Apache-2.0
"""Files: fields and images, official state dicts, tables, pictures, reports."""
