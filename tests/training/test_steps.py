"""One update and one validation step."""

import functools

import faster_rcnn_cases as cases
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toy_regression as toy

from jaxdet.structures import Batch, Images
from jaxdet.systems import architectures, faster_rcnn
from jaxdet.training import optimizers, parallel, steps
from jaxdet.training import state as states


def line_loss(variables, batch, *, train):
    """(w - 3)^2 over two images, |w| counted once, and a term that counts nothing."""
    w = variables["params"]["w"]
    terms = {
        "square": (2 * (w - 3.0) ** 2, jnp.asarray(2)),
        "size": (jnp.abs(w), jnp.asarray(1)),
        "none": (0.0 * w, jnp.asarray(0)),
    }
    return terms, steps.Aux({"w": (w, jnp.asarray(1))}, variables["batch_stats"])


def line_state(tx, *, ema=False):
    variables = {"params": {"w": jnp.asarray(1.0)}}
    return states.init_state(jax.random.key(0), variables, tx, ema=ema)


def test_update_by_hand(compiled):
    tx = optax.sgd(0.1)
    step = functools.partial(steps.train_step, loss_fn=line_loss, tx=tx, loss_weights={"size": 0.5})
    state, metrics = compiled(step)(line_state(tx), toy.batch(0))
    # (1 - 3)^2 + 0.5 * 1; slope 2 * (1 - 3) + 0.5 = -3.5.
    assert float(metrics["loss"]) == pytest.approx(4.5)
    assert float(metrics["loss/square"]) == pytest.approx(4.0)
    assert float(metrics["loss/size"]) == pytest.approx(1.0)
    assert float(metrics["loss/none"]) == 0.0
    assert float(metrics["grad_norm"]) == pytest.approx(3.5)
    assert float(metrics["w"]) == 1.0
    assert float(state.params["w"]) == pytest.approx(1.35)
    assert int(state.step) == 1


def test_counts_have_no_gradient():
    def loss(variables, batch, *, train):
        w = variables["params"]["w"]
        return {"a": (w, 2.0 + w)}, steps.Aux({}, {})

    tx = optax.sgd(1.0)
    state, _ = steps.train_step(line_state(tx), toy.batch(0), loss_fn=loss, tx=tx)
    assert float(state.params["w"]) == pytest.approx(1 - 1 / 3)


def test_average_by_hand():
    tx = optax.sgd(0.1)
    state = line_state(tx, ema=True)
    step = functools.partial(steps.train_step, loss_fn=line_loss, tx=tx, ema_decay=0.4)
    step = jax.jit(step)
    average = 1.0
    for i in range(9):
        state, _ = step(state, toy.batch(0))
        decay = min(0.4, (1 + i) / (10 + i))
        average = decay * average + (1 - decay) * float(state.params["w"])
        assert float(state.ema["params"]["w"]) == pytest.approx(average, rel=1e-5)
    assert (1 + 5) / (10 + 5) == 0.4  # Both sides of the warm-up were met.


def test_statistics_are_taken_over():
    before = toy.init()
    after, _ = jax.jit(toy.step())(before, toy.batch(0))
    x = toy.batch(0).images.pixels.reshape(8, 6) / np.float32(255)
    hidden = x @ before.params["Dense_0"]["kernel"]
    np.testing.assert_allclose(
        after.batch_stats["BatchNorm_0"]["mean"], 0.1 * hidden.mean(axis=0), rtol=1e-4, atol=1e-6
    )


def plain_loss(variables, batch, *, train):
    """No norm: noise by image, and a term that counts few images, all of them in one part."""
    x = batch.images.pixels.astype(jnp.float32).reshape(len(batch.positions), -1) / 255
    out = jnp.tanh(x @ variables["params"]["kernel"])
    error = (out - x[:, 0] + 0.1 * jax.vmap(jax.random.normal)(batch.keys)) ** 2
    few = batch.instances.valid.any(axis=1)
    terms = {
        "all": (error.sum(), jnp.asarray(len(x))),
        "few": (jnp.where(few, jnp.abs(out), 0.0).sum(), few.sum()),
    }
    return terms, steps.Aux({"error": (error.sum(), jnp.asarray(len(x)))}, {})


@pytest.mark.parametrize("n_parts", [2, 4])
@pytest.mark.parametrize("axis_name", [None, parallel.AXIS])
def test_a_batch_in_parts_is_the_whole_batch(n_parts, axis_name):
    tx = optax.sgd(0.1)
    kernel = jnp.linspace(-1.0, 1.0, 6)
    state = states.init_state(jax.random.key(0), {"params": {"kernel": kernel}}, tx)
    step = functools.partial(steps.train_step, loss_fn=plain_loss, tx=tx, loss_weights={"few": 2.0})
    seen = set()
    for number in range(4):
        batch = toy.batch(number)
        seen.add(int(batch.instances.valid.sum()))
        whole, metrics = step(state, batch)
        if axis_name:
            mapped = functools.partial(step, n_parts=n_parts, axis_name=axis_name)
            mapped = parallel.parallel_train_step(mapped)
            got, got_metrics = mapped(parallel.replicate(jax.device_get(state)), batch)
        else:
            got, got_metrics = jax.jit(functools.partial(step, n_parts=n_parts))(state, batch)
        np.testing.assert_allclose(got.params["kernel"], whole.params["kernel"], rtol=1e-5)
        assert got_metrics.keys() == metrics.keys()
        for name, value in metrics.items():
            assert float(got_metrics[name]) == pytest.approx(float(value), rel=1e-5), name
    assert len(seen) > 1  # None and some of the images in the term that counts few.


def test_batch_norm_sees_the_parts_in_turn():
    state, batch = toy.init(), toy.batch(2)
    assert (
        batch.instances.valid[:4].any() and not batch.instances.valid[4:].any()
    )  # A mean over parts of ratios would differ.
    step_key = jax.random.fold_in(jax.random.key(1), 0)
    keys = [jax.random.fold_in(step_key, position) for position in range(8)]
    keyed = batch._replace(keys=jnp.stack(keys))

    def objective(params):
        """The definition, as one function of both halves."""
        stats, sums = state.batch_stats, {}
        for half in (slice(0, 4), slice(4, 8)):
            part = jax.tree.map(lambda x, half=half: x[half], keyed)
            given = {"params": params, "batch_stats": stats}
            terms, aux = toy.loss(toy.Toy(), given, part, train=True)
            sums, stats = steps.merge(sums, terms), aux.batch_stats
        return sum(total / max(int(count), 1) for total, count in sums.values()), stats

    want, want_stats = jax.grad(objective, has_aux=True)(state.params)
    loss_fn = functools.partial(toy.loss, toy.Toy())
    got, _, stats = jax.jit(functools.partial(steps.gradients, loss_fn=loss_fn, n_parts=2))(
        state, batch
    )
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=2e-4, atol=1e-6), got, want)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), stats, want_stats)


def detector_step(spec, tx, *, dtype=jnp.float32, **options):
    model = architectures.build(cases.K, spec, dtype=dtype)
    variables = jax.jit(model.init)(jax.random.key(0), cases.make_batch().images)
    state = states.init_state(jax.random.key(0), variables, tx, ema=options.get("ema_decay", 0) > 0)
    loss_fn = functools.partial(faster_rcnn.loss, model, options=cases.LOSS)
    step = functools.partial(steps.train_step, loss_fn=loss_fn, tx=tx, **options)
    return model, state, jax.jit(step)


@pytest.mark.slow
def test_a_detector_in_parts_samples_the_same():
    results = []
    for n_parts in (1, 2):
        _, state, step = detector_step(cases.SINGLE_LEVEL, optax.sgd(1.0), n_parts=n_parts)
        after, metrics = step(state, cases.make_batch())
        results.append((jax.tree.map(jnp.subtract, after.params, state.params), metrics))
    (whole, metrics), (parts, metrics_of_parts) = results
    for name, value in metrics.items():
        assert float(metrics_of_parts[name]) == pytest.approx(float(value), rel=1e-4), name
    scale = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(whole))
    close = functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5 * scale)
    jax.tree.map(close, parts, whole)


def test_bfloat16_stays_in_the_layers():
    tx, batch = optimizers.adamw(3e-3), cases.make_batch()
    model, state, step = detector_step(cases.AGNOSTIC, tx, dtype=jnp.bfloat16, ema_decay=0.9)

    def types(function, *arguments):
        found = jax.eval_shape(function, *arguments)
        return {str(x.dtype) for x in jax.tree.leaves(found)} - {"int32", "uint32", "bool"}

    variables = states.variables(state)
    assert types(functools.partial(faster_rcnn.features, model), variables, batch.images) == {
        "bfloat16"
    }
    assert types(step, state, batch) == {"float32"}
    detect = functools.partial(faster_rcnn.detect, model, options=cases.DETECT)
    assert types(detect, variables, batch.images) == {"float32"}


@pytest.mark.slow
def test_trains_in_bfloat16():
    _, state, step = detector_step(cases.AGNOSTIC, optimizers.adamw(3e-3), dtype=jnp.bfloat16)
    losses = []
    for _ in range(30):
        state, metrics = step(state, cases.make_batch())
        losses.append(float(metrics["loss"]))
    assert np.isfinite(losses).all() and np.mean(losses[-5:]) < 0.6 * losses[0]


def keys_seen(state, batch):
    seen = []

    def loss(variables, batch, *, train):
        seen.append(np.asarray(jax.random.key_data(batch.keys)))
        return line_loss(variables, batch, train=train)

    steps.gradients(state, batch, loss_fn=loss)
    return seen[0]


def test_an_image_has_its_own_key():
    state, batch = line_state(optax.sgd(0.1)), toy.batch(0)
    keys = keys_seen(state, batch)
    assert len(np.unique(keys, axis=0)) == 8
    # The key follows the place in the global batch, not the place on this device.
    turned = batch._replace(positions=np.roll(batch.positions, 3))
    np.testing.assert_array_equal(keys_seen(state, turned), np.roll(keys, 3, axis=0))
    later = keys_seen(state._replace(step=jnp.asarray(1, jnp.int32)), batch)
    assert not (later == keys).all(axis=1).any()


def test_validation_sums_over_batches_are_exact(compiled):
    state = toy.init()
    loss_fn = functools.partial(toy.loss, toy.Toy())
    evaluate = compiled(functools.partial(steps.eval_step, loss_fn=loss_fn))
    key = jax.random.key(4)
    parts, pairs = {}, []
    for number in range(3):
        got = evaluate(key, states.variables(state), toy.batch(number))
        pairs.append(got["loss/few"])
        parts = steps.merge(parts, got)
    totals = steps.means(parts)
    want = sum(float(s) for s, _ in pairs) / max(sum(int(n) for _, n in pairs), 1)
    assert float(totals["loss/few"]) == pytest.approx(want, rel=1e-6)
    assert {int(n) for _, n in pairs} != {int(pairs[0][1])}  # Unequal, or a mean would do.
    assert set(totals) == {"loss/all", "loss/few", "error"}
    again = evaluate(jax.random.key_data(key), states.variables(state), toy.batch(2))
    assert toy.to_bytes(again) == toy.to_bytes(got)


def test_merge_takes_names_of_one_side():
    merged = steps.merge({"a": (jnp.ones(()), jnp.ones(()))}, {"b": (2 * jnp.ones(()),) * 2})
    assert {k: (float(s), float(n)) for k, (s, n) in merged.items()} == {"a": (1, 1), "b": (2, 2)}


def test_misuse():
    tx = optax.sgd(0.1)
    step = functools.partial(steps.train_step, batch=toy.batch(0), loss_fn=line_loss, tx=tx)
    with pytest.raises(ValueError, match=r"loss_weights .*Got \['sise'\]"):
        step(line_state(tx), loss_weights={"sise": 1.0})
    with pytest.raises(ValueError, match=r"Got ema_decay=0.9, state.ema=\[\]"):
        step(line_state(tx), ema_decay=0.9)
    with pytest.raises(ValueError, match=r"n_parts must divide the 8 images .* Got 3"):
        step(line_state(tx), n_parts=3)
    with pytest.raises(ValueError, match=r"Got ema_decay=0.0, state.ema=\['batch_stats'"):
        step(line_state(tx, ema=True))


def test_evaluate_losses_divides_once_all_batches_are_added():
    def step(key, variables, batch):
        del key
        count = batch.positions.shape[0]
        value = variables["params"]["w"] * batch.positions.sum()
        return {"loss/a": (value, jnp.float32(count)), "b": (value, jnp.float32(1))}

    batches = [toy_batch(positions=[1, 2]), toy_batch(positions=[5])]
    got = steps.evaluate_losses(jax.random.key(0), step, {"params": {"w": jnp.float32(3)}}, batches)
    assert got == {"loss/a": 8.0, "b": 12.0, "loss": 8.0}


def toy_batch(positions):
    nothing = jnp.zeros(0)
    images = Images(nothing, nothing)
    return Batch(images, nothing, nothing, positions=jnp.asarray(positions, jnp.float32))
