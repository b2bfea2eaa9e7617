# SPDX-License-Identifier: Apache-2.0
"""For a CPU build of torch beside torchvision's CUDA build: names the operator that torchvision asks for at import."""

import torch

torch.library.define("torchvision::nms", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
