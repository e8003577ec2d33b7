import numpy as np

from jaxdet.viz import score_maps


def windows(xs, ys, side):
    x, y = np.meshgrid(xs, ys)
    return np.stack([x, y, x + side, y + side], axis=-1).astype(float)


def test_cells_are_around_the_centers_of_their_windows():
    image = np.full((20, 30, 3), 100, np.uint8)
    # Centers at x 6, 16 and y 8, 12: cells of 10 x 4 pixels, from (1, 6) to (21, 14).
    scores = np.array([[0.0, 1.0], [0.5, 0.25]])
    drawn = score_maps.draw_scores(image, scores, windows([2, 12], [4, 8], 8))
    assert (image == 100).all() and drawn.shape == image.shape
    cells = [drawn[6:10, 1:11], drawn[6:10, 11:21], drawn[10:14, 1:11], drawn[10:14, 11:21]]
    assert all((cell == cell[0, 0]).all() for cell in cells)
    light = [int(cell[0, 0].astype(int).sum()) for cell in cells]
    assert light[0] < light[3] < light[2] < light[1]
    rest = np.ones((20, 30), bool)
    rest[6:14, 1:21] = False
    assert (drawn[rest] == 100).all()


def test_one_window():
    image = np.zeros((10, 10, 3), np.uint8)
    drawn = score_maps.draw_scores(image, np.ones((1, 1)), windows([2], [3], 4))
    bright = drawn.sum(axis=-1) > 0
    assert bright[3:7, 2:6].all() and bright.sum() == 16
