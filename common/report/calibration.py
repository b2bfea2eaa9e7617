# SPDX-License-Identifier: Apache-2.0
"""A picture of what an uncertainty is worth: error over uncertainty, and how both go together in each pair."""

from __future__ import annotations

from common.evaluation.calibration import Calibration
from common.report.panels import as_png


def draw_calibration(found: Calibration) -> bytes:
    """PNG of two diagrams.

    On the left the error of the parts of :attr:`Calibration.bins` over their uncertainty, on logarithmic axes: where
    errors are as large as they are said to be, it lies on the line. On the right the rank correlation of each pair,
    and as a line that of all voxels together.

    Args:
        found: what was measured.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.4, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    uncertainty, error = ([row[name] for row in found.bins] for name in ("uncertainty", "error"))
    ends = [min(*uncertainty, *error), max(*uncertainty, *error)]
    left.loglog(ends, ends, color="0.7", linewidth=1, label="as said")
    left.loglog(uncertainty, error, marker="o", markersize=3.5, label=f"{len(found.bins)} parts of all voxels")
    left.set_xlabel("predicted standard deviation (mm, root mean square)")
    left.set_ylabel("error (mm, root mean square)")
    left.legend(fontsize=8)
    *pairs, pooled = found.pairs
    right.bar(range(1, len(pairs) + 1), [row["spearman"] for row in pairs], color="0.6")
    right.axhline(float(pooled["spearman"]), color="C1", label="all voxels together")
    right.axhline(0, color="black", linewidth=0.8)
    right.set_xlabel("pair")
    right.set_ylabel("rank correlation of uncertainty and error")
    right.legend(fontsize=8)
    return as_png(figure, dpi=110)
