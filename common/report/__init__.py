# SPDX-License-Identifier: Apache-2.0
"""Pages and pictures: what a person looks at after a training, an evaluation or a comparison."""
