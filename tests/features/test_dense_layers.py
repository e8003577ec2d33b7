import functools

import backbone_parity as parity
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from faster_rcnn_cases import drawn

from jaxdet.features import dense
from jaxdet.features.alexnet import alexnet
from jaxdet.features.conv import flatten, max_pool
from jaxdet.features.norm import whole
from jaxdet.features.vgg import VGG, VGGFeatures

# Window and names of the dense layers; the second network is VGG's but for its stages.
NETWORKS = {
    "alexnet": (alexnet(num_classes=5), (6, 6), ("1", "4", "6"), (287, 255), (3, 2)),
    "vgg": (
        VGG(VGGFeatures(((4, 4), (6,), (8,))), num_classes=5),
        *((7, 7), ("0", "3", "6"), (80, 73), (4, 3)),
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_sliding_is_the_classifier_on_every_window_of_the_map(name):
    model, window, names, picture, windows = NETWORKS[name]
    pool = functools.partial(max_pool, kernel_size=3 if name == "alexnet" else 2, padding=0)
    square = 224 if name == "alexnet" else 56
    x = jax.random.normal(jax.random.key(0), (1, *picture, 3))
    variables = drawn(parity.like(model, x, train=False, method="logits"))

    @jax.jit
    def both(variables, x):
        maps = pool(model.apply(variables, x, whole(x), train=False)[-1])
        layers = [variables["params"]["classifier"][n] for n in names]
        return maps, dense.slide(maps, layers, window)

    @jax.jit
    def classify(variables, cuts):
        def run(bound, x):
            return bound.classifier(x, train=False)

        return model.apply(variables, flatten(cuts), method=run)[1]

    maps, got = both(variables, x)
    assert got.shape == (1, *windows, 5)
    starts = list(np.ndindex(*windows))
    cuts = [maps[0, i : i + window[0], j : j + window[1]] for i, j in starts]
    want = classify(variables, jnp.stack(cuts)).reshape(got.shape)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
    assert np.std(got[0, :, :, 0]) > 1e-2, "windows differ"
    # A picture of the size that the network is for is one window.
    alone = jax.random.normal(jax.random.key(1), (1, square, square, 3))
    logits = jax.jit(functools.partial(model.apply, train=False, method="logits"))(variables, alone)
    np.testing.assert_allclose(both(variables, alone)[1][:, 0, 0], logits, rtol=1e-4, atol=1e-4)


def test_by_hand(compiled):
    # One channel; the layer takes the upper right cell from the lower left one, and adds 1.
    maps = jnp.arange(9.0).reshape(1, 3, 3, 1) ** 2
    layer = {"kernel": jnp.array([[0.0], [1], [-1], [0]]), "bias": jnp.ones(1)}
    got = compiled(lambda m: dense.slide(m, [layer], (2, 2)))(maps)
    np.testing.assert_allclose(got[0, :, :, 0], [[1 - 9 + 1, 4 - 16 + 1], [16 - 36 + 1, 25 - 48]])


def test_steps_take_cells_apart():
    maps = jax.random.normal(jax.random.key(0), (2, 8, 7, 3))
    stack = dense.DenseStack((4, 2))
    params = drawn(parity.like(stack, jnp.zeros((1, 12)), train=False, method="__call__"))
    layers = [params["params"][n] for n in ("0", "1")]
    got = dense.slide(maps, layers, (2, 2), step=3)
    assert got.shape == (2, 5, 4, 2)
    for i, j in np.ndindex(5, 4):
        cut = flatten(maps[:, i : i + 4 : 3, j : j + 4 : 3])
        want = stack.apply(params, cut, train=False)
        np.testing.assert_allclose(got[:, i, j], want, rtol=1e-4, atol=1e-5)


def test_windows_that_do_not_fit_the_layer():
    layer = {"kernel": jnp.zeros((12, 2)), "bias": jnp.zeros(2)}
    with pytest.raises(ValueError, match=r"12 inputs.*\(5, 5\)"):
        dense.to_conv([layer], (5, 5))


def test_dropout_is_of_each_row_alone():
    stack = dense.DenseStack((50, 3), dropout=0.5)
    x, keys = jnp.ones((4, 6)), jax.random.split(jax.random.key(0), 4)
    params = stack.init(jax.random.key(1), x, train=False)
    run = functools.partial(stack.apply, params, train=True)
    got = run(x, keys=keys)
    assert len({float(row[0]) for row in got}) == 4
    np.testing.assert_array_equal(run(x[1:3], keys=keys[1:3]), got[1:3])
    plain = stack.apply(params, x, train=False)
    np.testing.assert_array_equal(plain, jnp.broadcast_to(plain[:1], plain.shape))
    with pytest.raises(ValueError, match="keys"):
        run(x)


def test_dropout_keeps_the_mean():
    stack = dense.DenseStack((200, 1), dropout=0.3)
    x = jnp.ones((400, 5))
    params = jax.tree.map(jnp.ones_like, stack.init(jax.random.key(1), x, train=False))
    dropped = stack.apply(params, x, keys=jax.random.split(jax.random.key(0), 400), train=True)
    assert np.std(dropped) > 10
    np.testing.assert_allclose(jnp.mean(dropped), 200 * 6 + 1, rtol=0.01)
