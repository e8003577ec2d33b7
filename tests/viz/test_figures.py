import cv2
import matplotlib.pyplot as plt
import numpy as np
import pytest

from jaxdet.viz import figures


@pytest.fixture
def saved(monkeypatch):
    """Figures as they are saved, so that tests see their lines."""
    seen = []
    real = figures._save

    def save(path, figure):
        seen.append(figure)
        return real(path, figure)

    monkeypatch.setattr(figures, "_save", save)
    return seen


def lines(axes):
    return {line.get_label(): np.array(line.get_xydata()) for line in axes.lines}


def test_precision_recall_curves(tmp_path, saved):
    precision = np.array([[1.0, 0.6, np.nan], [0.5, 0.6, np.nan], [0.0, 0.6, np.nan]])
    path = figures.precision_recall_figure(
        tmp_path / "new" / "pr.png", precision, ("cat", "dog", "fox")
    )
    assert cv2.imread(str(path)).std() > 1
    (axes,) = saved[0].axes
    got = lines(axes)
    # The best class first, classes without objects last.
    assert list(got) == ["dog  0.600", "cat  0.500", "fox  none", "mean  0.550"]
    np.testing.assert_allclose(got["cat  0.500"], [[0, 1], [0.5, 0.5], [1, 0]])
    np.testing.assert_allclose(got["mean  0.550"], [[0, 0.8], [0.5, 0.55], [1, 0.3]])


def test_precision_recall_without_any_objects(tmp_path, saved):
    figures.precision_recall_figure(tmp_path / "pr.png", np.full((101, 1), np.nan), ("cat",))
    assert list(lines(saved[0].axes[0])) == ["cat  none"]


def test_precision_recall_names_a_wrong_count(tmp_path):
    with pytest.raises(ValueError, match="Expected 2 class names, got 1"):
        figures.precision_recall_figure(tmp_path / "pr.png", np.ones((101, 2)), ("cat",))


def test_training_curves(tmp_path, saved):
    rows = [
        {"step": 0, "loss": 3.0, "loss/rpn_box": 1.0, "grad_norm": 9.0},
        {"step": 5, "eval/AP": 0.1, "eval/AP50": None, "eval/loss": 2.5},
        {"step": 5, "loss": 2.0, "loss/rpn_box": 0.5, "grad_norm": 9.0},
        {"step": 9, "eval/AP": 0.3, "eval/AP50": 0.6, "eval/raw/loss": 3.5},
    ]
    path = figures.training_curves(tmp_path / "curves.png", rows)
    assert cv2.imread(str(path)).std() > 1
    left, right = map(lines, saved[0].axes)
    assert set(left) == {"loss", "loss/rpn_box", "eval/loss", "eval/raw/loss"}
    np.testing.assert_allclose(left["loss"], [[0, 3], [5, 2]])
    np.testing.assert_allclose(left["eval/loss"], [[5, 2.5]])
    assert set(right) == {"eval/AP", "eval/AP50"}
    np.testing.assert_allclose(right["eval/AP"], [[5, 0.1], [9, 0.3]])
    np.testing.assert_allclose(right["eval/AP50"], [[9, 0.6]])


# What the evaluations of the scripts are called.
SCORES = ("AR100", "top1", "PCK2", "PDJ", "PCP", "iou_10", "right_10", "window_accuracy", "raw/AP")


@pytest.mark.parametrize("name", SCORES)
def test_every_score_has_a_curve(tmp_path, saved, name):
    rows = [{"step": 5, "loss": 1.0, "error": 0.2, f"eval/{name}": 0.4}]
    figures.training_curves(tmp_path / "curves.png", rows)
    assert list(lines(saved[0].axes[1])) == [f"eval/{name}"]


def test_training_curves_of_an_empty_log(tmp_path):
    assert figures.training_curves(tmp_path / "curves.png", []).stat().st_size > 1000


def test_figures_are_no_global_state(tmp_path):
    before = plt.get_fignums()
    figures.training_curves(tmp_path / "curves.png", [])
    assert plt.get_fignums() == before
