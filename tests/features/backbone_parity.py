"""Holds backbones to the numbers that torchvision gave for the same weights and pictures."""

import functools

import backbone_cases as cases
import jax
import jax.numpy as jnp
import numpy as np

from jaxdet.weights import torchvision

GOLDEN = np.load(cases.PATH)


def like(model, *args, method, **kwargs):
    """The variables that a method asks for, without numbers."""
    init = functools.partial(model.init, method=method, **kwargs)
    return jax.eval_shape(init, jax.random.key(0), *args)


def by_name(variables):
    """Our arrays by torch's names."""
    arrays = {"scale": "weight", "kernel": "weight", "mean": "running_mean", "var": "running_var"}
    named = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
        _, *module, array = (key.key for key in path)
        named[".".join([*module, arrays.get(array, array)])] = leaf
    return named


def names(variables):
    """Torch's names and shapes of our variables, as rows "conv1.weight 64 3 7 7"."""
    layouts = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}
    return {
        " ".join([name, *(str(leaf.shape[axis]) for axis in layouts[leaf.ndim])])
        for name, leaf in by_name(variables).items()
    }


def assert_names(key, model, *, method="logits"):
    """Every parameter has torchvision's name and, but for the layout, its shape."""
    x = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    assert names(like(model, x, train=False, method=method)) == set(GOLDEN[f"{key}/names"].tolist())


def weights(key, variables):
    """Numbers for variables, which must be all that torchvision's model has."""
    return torchvision.from_state_dict(cases.state_dict(GOLDEN[f"{key}/names"]), variables)


def assert_close(got, want, *, rtol=1e-4):
    """Errors are relative to the largest number of the array."""
    assert got.shape == want.shape
    error = np.abs(np.asarray(got) - want).max() / np.abs(want).max()
    assert error < rtol, f"relative error {error:.1e}"


def run(key, model, *, method="logits"):
    """The maps, and what the method returns, of two pictures."""
    x = jnp.asarray(cases.pictures(2, 96, 80, 3))
    variables = weights(key, like(model, x, train=False, method=method))
    sizes = jnp.array([[96, 80]] * 2)

    def both(variables, x):
        maps = model.apply(variables, x, sizes, train=False)
        return maps, model.apply(variables, x, train=False, method=method)

    return jax.jit(both)(variables, x)


def assert_maps(key, maps):
    want = GOLDEN[f"{key}/maps"]
    for x, numbers in zip(maps, want, strict=True):
        assert_close(cases.summary(np.asarray(x)), numbers)


def assert_parity(key, model):
    """Logits and every stage's map are torchvision's."""
    maps, logits = run(key, model)
    assert_close(logits[:, cases.CLASSES], GOLDEN[f"{key}/logits"])
    assert_maps(key, maps)


def map_shapes(model, height, width):
    """(height, width, channels) of the maps of a canvas."""
    x = jax.ShapeDtypeStruct((1, height, width, 3), jnp.float32)
    sizes = jax.ShapeDtypeStruct((1, 2), jnp.int32)

    def init(key, x, sizes):
        return model.init_with_output(key, x, sizes, train=False)

    return [x.shape[1:] for x in jax.eval_shape(init, jax.random.key(0), x, sizes)[0]]


def trained_layers(model):
    """Layers that the maps pull on, and those whose statistics move."""
    x = jnp.asarray(cases.pictures(2, 64, 64, 3))
    sizes = jnp.array([[64, 64]] * 2)
    variables = jax.tree.map(
        lambda leaf: jnp.asarray(0.1 * cases.pictures(*leaf.shape) + 0.1),
        jax.eval_shape(lambda: model.init(jax.random.key(0), x, sizes, train=False)),
    )

    @jax.jit
    @functools.partial(jax.grad, has_aux=True)
    def pull(params):
        rest = {name: v for name, v in variables.items() if name != "params"}
        maps, updates = model.apply(
            {"params": params, **rest}, x, sizes, train=True, mutable=["batch_stats"]
        )
        return sum(jnp.sum(jnp.sin(m)) for m in maps), updates.get("batch_stats", {})

    def changed(tree, other):
        return any(map(np.any, jax.tree.leaves(jax.tree.map(jnp.subtract, tree, other))))

    gradients, stats = pull(variables["params"])
    pulled = {n for n, g in gradients.items() if any(map(np.any, jax.tree.leaves(g)))}
    before = variables.get("batch_stats", {})
    return pulled, {name for name, tree in stats.items() if changed(tree, before[name])}


def assert_pyramid(key, model):
    """A detector's backbone makes torchvision's levels of pictures with odd sides."""
    x, sizes = jnp.asarray(cases.pictures(2, 97, 75, 3)), jnp.array([[97, 75]] * 2)
    variables = weights(key, like(model, x, sizes, train=False, method="__call__"))
    levels = jax.jit(functools.partial(model.apply, train=False))(variables, x, sizes)
    assert_maps(key, levels)


def assert_half_precision(model):
    """Arithmetic is in bfloat16, parameters and logits are not."""
    x = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    sizes = jax.ShapeDtypeStruct((1, 2), jnp.int32)
    init = functools.partial(model.init_with_output, train=False)
    maps, _ = jax.eval_shape(init, jax.random.key(0), x, sizes)
    assert {m.dtype for m in maps} == {jnp.dtype(jnp.bfloat16)}
    init = functools.partial(init, method="logits")
    logits, variables = jax.eval_shape(init, jax.random.key(0), x)
    assert {v.dtype for v in jax.tree.leaves((logits, variables))} == {jnp.dtype(jnp.float32)}
