import functools

import numpy as np
import pytest

from jaxdet.geometry import anchors
from jaxdet.geometry import boxes as box_ops

RATIOS = (0.5, 1.0, 2.0)


def test_cell_matches_torchvision():
    # torchvision 0.28: AnchorGenerator().generate_anchors([32, 64], [0.5, 1.0, 2.0])
    want = [
        [-23, -11, 23, 11],
        [-45, -23, 45, 23],
        [-16, -16, 16, 16],
        [-32, -32, 32, 32],
        [-11, -23, 11, 23],
        [-23, -45, 23, 45],
    ]
    np.testing.assert_array_equal(anchors.cell_anchors((32, 64), RATIOS), want)


def test_cell_areas_and_ratios():
    got = anchors.cell_anchors((128.0, 256.0, 512.0), RATIOS)
    w, h = np.array(box_ops.centers_and_sizes(got)[1]).T
    np.testing.assert_allclose(np.sqrt(w * h), [128, 256, 512] * 3, rtol=0.01)
    np.testing.assert_allclose(h / w, np.repeat(RATIOS, 3), rtol=0.015)  # Half a pixel of 45.


def test_grid_by_hand(compiled):
    cell = anchors.cell_anchors((2, 4), (1,))
    grid = functools.partial(anchors.grid_anchors, grid_size=(2, 3), stride=(10, 100))
    want = [[x - s, y - s, x + s, y + s] for y in (0, 10) for x in (0, 100, 200) for s in (1, 2)]
    np.testing.assert_array_equal(compiled(grid)(cell), want)


def test_pyramid_strides():
    levels = anchors.pyramid_anchors([(4, 6), (2, 3)], (33, 48), [(8,), (16,)], RATIOS)
    for level, size, grid, stride in zip(levels, (8, 16), [(4, 6), (2, 3)], (8, 16), strict=True):
        want = anchors.grid_anchors(anchors.cell_anchors((size,), RATIOS), grid, (stride, stride))
        np.testing.assert_array_equal(level, want)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: anchors.cell_anchors((), RATIOS), r"sizes must be .* Got \(\)"),
        (lambda: anchors.cell_anchors((8, 0), RATIOS), r"sizes must be .* Got \(8, 0\)"),
        (lambda: anchors.cell_anchors((8,), (1, -2)), r"aspect_ratios must be .* Got \(1, -2\)"),
        (
            lambda: anchors.pyramid_anchors([(9, 4)], (8, 8), [(8,)], RATIOS),
            r"stride must be positive\. Got \(0, 2\)",
        ),
        (
            lambda: anchors.pyramid_anchors([(4, 4)], (8, 8), [(8,), (16,)], RATIOS),
            r"sizes must have 1 levels\. Got 2",
        ),
        (
            lambda: anchors.grid_anchors(anchors.cell_anchors((8,), (1,)), (0, 4), (8, 8)),
            r"grid_size must be positive\. Got \(0, 4\)",
        ),
    ],
)
def test_rejects(call, message):
    with pytest.raises(ValueError, match=message):
        call()
