"""One update and one validation step: pure, per device, and the same on one device as on many.

A loss is a dict of (sum, count) pairs. Counts are added up over devices *before* the division:

    total = sum_t weight_t * (sum over devices of sum_t) / max(sum over devices of count_t, 1)

The mean over devices of each device's ratio would depend on how images fall on devices.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key, Num, UInt32

from jaxdet.structures import Batch
from jaxdet.training.state import PyTree, TrainState, variables

Sums = dict[str, tuple[Num[Any, ""], Num[Any, ""]]]  # name -> (sum, count)


class Aux(NamedTuple):
    """What a loss reports beside its terms."""

    metrics: Sums  # Not minimized.
    batch_stats: PyTree  # After this batch; {} without batch norm.


# loss_fn(variables, batch, *, train) -> (terms, Aux)
LossFn = Callable[..., tuple[Sums, Aux]]


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    loss_fn: LossFn,
    tx: optax.GradientTransformation,
    loss_weights: Mapping[str, float] | None = None,
    ema_decay: float = 0.0,
    n_parts: int = 1,
    axis_name: str | None = None,
) -> tuple[TrainState, dict[str, Float[Array, ""]]]:
    """One update.

    An image's key is folded from the run's key, the step, and the image's place in the global
    batch, so that it does not depend on the number of devices.

    Args:
      state: Before the update.
      batch: This device's images; its `keys` are filled here.
      loss_fn: `loss_fn(variables, batch, *, train) -> (terms, Aux)`.
      tx: The optimizer.
      loss_weights: What each term is multiplied with, by name; 1 where not named.
      ema_decay: Of the moving average, 0 to 1; above 0 exactly when the state keeps one.
      n_parts: See `gradients`.
      axis_name: The mapped axis over sibling devices, if there are any.

    Returns:
      The state after the update, and means over all devices: "loss", "loss/<term>" before
      weighting, "grad_norm" before clipping, and the loss function's own metrics.
    """
    if bool(state.ema) != (ema_decay > 0):
        raise ValueError(
            "ema_decay must be above 0 exactly when the state keeps an average. "
            f"Got ema_decay={ema_decay}, state.ema={sorted(state.ema)}"
        )
    grads, sums, stats = gradients(
        state,
        batch,
        loss_fn=loss_fn,
        loss_weights=loss_weights,
        n_parts=n_parts,
        axis_name=axis_name,
    )
    with jax.named_scope("optimizer"):
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
    averaged = {"params": params, "batch_stats": stats}
    state = state._replace(
        step=state.step + 1,
        params=params,
        opt_state=opt_state,
        batch_stats=stats,
        ema=_move_average(state, averaged, ema_decay) if state.ema else {},
    )
    metrics = means(sums)
    terms = {k.removeprefix("loss/"): v for k, v in metrics.items() if k.startswith("loss/")}
    metrics["loss"] = weighted_total(terms, loss_weights=loss_weights)
    metrics["grad_norm"] = optax.tree.norm(grads)
    return state, metrics


def gradients(
    state: TrainState,
    batch: Batch,
    *,
    loss_fn: LossFn,
    loss_weights: Mapping[str, float] | None = None,
    n_parts: int = 1,
    axis_name: str | None = None,
) -> tuple[PyTree, Sums, PyTree]:
    """What an update is made from, without the update.

    In parts, a batch takes the memory of one part. What is differentiated stays the total above,
    counts of all parts in it: the parts are gone through once for their counts (the compiler drops
    all that no count depends on) and once for the gradients. Batch norm sees one part at a time,
    and its running statistics move once a part: with it, parts are smaller batches.

    Args:
      state: Before the update.
      batch: This device's images; its `keys` are filled here.
      loss_fn: `loss_fn(variables, batch, *, train) -> (terms, Aux)`.
      loss_weights: What each term is multiplied with, by name; 1 where not named.
      n_parts: In how many parts this device goes through its images, one after the other.
      axis_name: The mapped axis over sibling devices, if there are any.

    Returns:
      The gradient, the (sum, count) of "loss/<term>" and of the metrics, all of them over all
      devices, and the batch statistics afterwards.

    Raises:
      ValueError: Where `n_parts` does not divide the batch.
    """
    batch = _with_keys(_step_key(state), batch)

    def terms_of(params: PyTree, stats: PyTree, part: Batch) -> tuple[Sums, Aux]:
        changing = {"params": params, "batch_stats": stats}
        return loss_fn(variables(state) | changing, part, train=True)

    def objective(
        params: PyTree, stats: PyTree, part: Batch, counts: Mapping[str, Any] | None
    ) -> tuple[Float[Array, ""], tuple[Sums, Aux]]:
        terms, aux = terms_of(params, stats, part)
        totals = _sum_over(_counts(terms), axis_name) if counts is None else counts
        shares = {name: _mean(total, totals[name]) for name, (total, _) in terms.items()}
        return weighted_total(shares, loss_weights=loss_weights), (terms, aux)

    differentiate = jax.grad(objective, has_aux=True)
    if n_parts == 1:
        grads, (terms, aux) = differentiate(state.params, state.batch_stats, batch, None)
        sums, stats = _named(terms, aux), aux.batch_stats
    else:
        parts = _cut(batch, n_parts)

        def count(carry: tuple[()], part: Batch) -> tuple[tuple[()], dict[str, Any]]:
            return carry, _counts(terms_of(state.params, state.batch_stats, part)[0])

        counts = _sum_over(_add_up(_in_turn(count, (), parts)[1]), axis_name)

        def add(carry: tuple[PyTree, PyTree], part: Batch) -> tuple[tuple[PyTree, PyTree], Sums]:
            grads, stats = carry
            more, (terms, aux) = differentiate(state.params, stats, part, counts)
            return (optax.tree.add(grads, more), aux.batch_stats), _named(terms, aux)

        start = (optax.tree.zeros_like(state.params), state.batch_stats)
        (grads, stats), of_parts = _in_turn(add, start, parts)
        sums = _add_up(of_parts)
    grads, sums = _sum_over((grads, sums), axis_name)
    # Synchronized norms already agree; this keeps devices from drifting apart by rounding.
    return grads, sums, jax.lax.pmean(stats, axis_name) if axis_name else stats


def eval_step(
    key: Key[Array, ""] | UInt32[Array, " _"],
    variables: dict[str, PyTree],
    batch: Batch,
    *,
    loss_fn: LossFn,
    axis_name: str | None = None,
) -> Sums:
    """Sums of the loss on one batch, without an update.

    Args:
      key: The same at every evaluation, so that the same proposals are sampled.
      variables: What the model is applied with.
      batch: This device's images; its `keys` are filled here.
      loss_fn: `loss_fn(variables, batch, *, train) -> (terms, Aux)`.
      axis_name: The mapped axis over sibling devices, if there are any.

    Returns:
      (sum, count) over all devices of "loss/<term>" and of the metrics. Add up with `merge`,
      divide with `means`.
    """
    terms, aux = loss_fn(variables, _with_keys(_typed(key), batch), train=False)
    return _sum_over(_named(terms, aux), axis_name)


def bound_loss(
    loss: Callable[[Any], tuple[Sums, Sums]],
    model: nn.Module,
    variables: Mapping[str, PyTree],
    *,
    train: bool,
) -> tuple[Sums, Aux]:
    """Runs a loss that calls methods of a model, and keeps what norms learnt meanwhile.

    Args:
      loss: From the model, bound to its variables, to (terms, metrics).
      model: The architecture.
      variables: Its parameters and statistics.
      train: Whether norms move their statistics.

    Returns:
      What a loss of a system returns.
    """
    run = nn.apply(loss, model, mutable=["batch_stats"] if train else [])
    (terms, metrics), updates = run(variables)
    return terms, Aux(metrics, updates.get("batch_stats", variables.get("batch_stats", {})))


def evaluate_losses(
    key: Key[Array, ""],
    step: Callable[..., Sums],
    variables: dict[str, PyTree],
    batches: Iterable[Batch],
) -> dict[str, float]:
    """Means of the losses over a whole split, every image counted once.

    Args:
      key: As in `eval_step`.
      step: `eval_step` with its loss bound, compiled.
      variables: What the model is applied with.
      batches: Of the split.

    Returns:
      Means by name: "loss/<term>", their sum "loss", and the metrics.
    """
    sums: Sums = {}
    for batch in batches:
        sums = merge(sums, jax.device_get(step(key, variables, batch)))
    found = {name: float(value) for name, value in means(sums).items()}
    return found | {"loss": sum(v for name, v in found.items() if name.startswith("loss/"))}


def merge(left: Sums, right: Sums) -> Sums:
    """Adds the sums and counts of two sets of batches; a name may be on one side only.

    Args:
      left: (sum, count) by name; {} to begin with.
      right: (sum, count) by name.

    Returns:
      (sum, count) by name over both.
    """
    merged = dict(left)
    for name, (total, count) in right.items():
        before = merged.get(name, (0, 0))
        merged[name] = (before[0] + total, before[1] + count)
    return merged


def means(sums: Sums) -> dict[str, Float[Array, ""]]:
    """Divides: sum / max(count, 1).

    Args:
      sums: (sum, count) by name.

    Returns:
      One number by name; 0 where nothing was counted.
    """
    return {name: _mean(total, count) for name, (total, count) in sums.items()}


def weighted_total(
    terms: Mapping[str, Float[Array, ""]], *, loss_weights: Mapping[str, float] | None = None
) -> Float[Array, ""]:
    """Sum over terms of weight times mean.

    Args:
      terms: Means by name, without the "loss/" of the reports.
      loss_weights: By name; 1 where not named.

    Returns:
      What is minimized.

    Raises:
      ValueError: Where a weight names no term.
    """
    loss_weights = loss_weights or {}
    if unknown := set(loss_weights) - set(terms):
        raise ValueError(f"loss_weights must name terms of {sorted(terms)}. Got {sorted(unknown)}")
    weighted = [loss_weights.get(name, 1.0) * mean for name, mean in terms.items()]
    return jnp.asarray(sum(weighted), jnp.float32)


def _mean(total: Num[Any, ""], count: Num[Any, ""]) -> Float[Array, ""]:
    return jnp.asarray(total, jnp.float32) / jnp.maximum(jnp.asarray(count, jnp.float32), 1.0)


def _counts(terms: Sums) -> dict[str, Num[Any, ""]]:
    return jax.lax.stop_gradient({name: count for name, (_, count) in terms.items()})


def _cut(batch: Batch, n_parts: int) -> Batch:
    """[b, ...] to [n_parts, b / n_parts, ...]."""
    size = batch.positions.shape[0]
    if n_parts < 1 or size % n_parts:
        raise ValueError(f"n_parts must divide the {size} images of a device. Got {n_parts}")
    return jax.tree.map(lambda x: x.reshape(n_parts, -1, *x.shape[1:]), batch)


def _in_turn(
    function: Callable[[Any, Batch], tuple[Any, PyTree]], carry: Any, parts: Batch
) -> tuple[Any, PyTree]:
    """A scan; on CPU written out, since convolutions in its loops take several times as long."""
    if jax.default_backend() != "cpu":
        return jax.lax.scan(function, carry, parts)
    outputs = []
    for i in range(len(parts.positions)):
        part = jax.tree.map(lambda x, i=i: x[i], parts)
        # A part waits for the one before it, or it would take memory beside it.
        carry, outputs, images = jax.lax.optimization_barrier((carry, outputs, part.images))
        carry, output = function(carry, part._replace(images=images))
        outputs.append(output)
    return carry, jax.tree.map(lambda *x: jnp.stack(x), *outputs)


def _add_up(stacked: PyTree) -> PyTree:
    return jax.tree.map(lambda x: x.sum(axis=0), stacked)


def _named(terms: Sums, aux: Aux) -> Sums:
    return {f"loss/{name}": pair for name, pair in terms.items()} | aux.metrics


def _sum_over(tree: PyTree, axis_name: str | None) -> PyTree:
    return jax.lax.psum(tree, axis_name) if axis_name else tree


def _typed(key: Key[Array, ""] | UInt32[Array, " _"]) -> Key[Array, ""]:
    typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    return key if typed else jax.random.wrap_key_data(key)


def _step_key(state: TrainState) -> Key[Array, ""]:
    return jax.random.fold_in(_typed(state.key), state.step)


def _with_keys(key: Key[Array, ""], batch: Batch) -> Batch:
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, batch.positions)
    return batch._replace(keys=keys)


@jax.named_scope("average")
def _move_average(state: TrainState, new: PyTree, decay: float) -> PyTree:
    """`decay * average + (1 - decay) * new`, with a shorter memory in the first steps."""
    step = state.step.astype(jnp.float32)
    # Without it the average stays near its random start for 1 / (1 - decay) steps.
    decay_now = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    return jax.tree.map(lambda old, x: old + (1.0 - decay_now) * (x - old), state.ema, new)
