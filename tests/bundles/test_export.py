# SPDX-License-Identifier: Apache-2.0
"""Every network as an ONNX file for any size, where onnx and onnxruntime are installed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from monai.bundle import ConfigParser, onnx_export

from common.engine import save_atomically
from common.networks import DualPyramid

from .conftest import NETWORKS, dimensions, tiny

SIZE = (32, 40, 33)
# Axes that are no multiples of 16, or no longer than 16, are padded inside, by amounts that the file has to work out.
OTHER_SIZES = ((48, 33, 50), (8, 33, 20), (34, 16, 12), (20, 31, 1))
AXES = {0: "batch", 2: "d", 3: "h", 4: "w"}
MODES = {2: "bilinear", 3: "trilinear"}
# Volumes can be sampled from version 20 on, by the exporter that traces.
OPTIONS = {
    "opset_version": 20,
    "dynamo": False,
    "input_names": ["image"],
    "output_names": ["ddf"],
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("bundle", NETWORKS, ids=lambda path: path.name)
def test_onnx_export_gives_the_same_field(bundle: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    config = bundle / "configs" / "inference.json"
    parser = ConfigParser()
    parser.read_config(str(config))
    parser.update(tiny(bundle))
    torch.manual_seed(0)
    network = parser.get_parsed_content("network_def").eval()
    for name, parameter in network.named_parameters():
        # Displacements of voxels, which those of a fresh network are not.
        pyramid = isinstance(network, DualPyramid)
        parameter.data *= (
            (5e3 if pyramid else 2) if ".flow." in name else 8 if ".project." in name and not pyramid else 1
        )
        # Of GradICON, TransMorph and NePhi they are none.
        larger = 0.1 if ".last." in name or "head.conv." in name else 0.02 if "head." in name else 0
        parameter.data += torch.randn_like(parameter) * larger
    save_atomically(network.state_dict(), tmp_path / "model.pt")
    dims = dimensions(bundle)
    axes = {axis: name for axis, name in AXES.items() if axis < 2 + dims}
    onnx_export(
        "network_def",
        filepath=str(tmp_path / "model.onnx"),
        ckpt_file=str(tmp_path / "model.pt"),
        meta_file=str(bundle / "configs" / "metadata.json"),
        config_file=str(config),
        use_trace=True,
        input_shape=[1, 2, *SIZE[:dims]],
        converter_kwargs={**OPTIONS, "dynamic_axes": {"image": axes, "ddf": axes}},
        **tiny(bundle),
    )
    session = runtime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    for size in (SIZE, *OTHER_SIZES):
        image = F.interpolate(torch.rand(1, 2, *(7, 8, 7)[:dims]), size=size[:dims], mode=MODES[dims])
        with torch.no_grad():
            expected = network(image).numpy()
        (ddf,) = session.run(["ddf"], {"image": image.numpy()})
        assert np.abs(expected).max() > 0.5
        # Voxels: what the bundles' documentation promises of an export.
        np.testing.assert_allclose(ddf, expected, rtol=0, atol=2e-3)
