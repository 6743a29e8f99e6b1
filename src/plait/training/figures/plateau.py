"""The rule that ends a stage before its planned steps, once a metric on held-out data no longer improves. A stage is a part of a run."""

from collections.abc import Sequence

from plait.config.schema import Plateau


def flat(history: Sequence[tuple[int, float]], rule: Plateau) -> str | None:
    """Return a sentence for the log that says why the metric counts as no longer improving, or None while it improves.

    `history`: (step of the stage, value), oldest first. From step `rule.min_steps` on, it no longer improves if there was no new best for
    `patience_steps`, or if the best of the last `window_steps` beats the best before by less than the fraction `min_gain`.
    """
    if not history or history[-1][0] < rule.min_steps:
        return None
    sign = 1.0 if rule.better == "lower" else -1.0
    now = history[-1][0]
    best_step, best = min(history, key=lambda item: (sign * item[1], item[0]))
    if now - best_step >= rule.patience_steps:
        return f"{rule.metric} has no new best since step {best_step} of the stage ({best:.4g}), {now - best_step} steps ago"
    earlier = [sign * value for step, value in history if step <= now - rule.window_steps]
    if earlier:
        gain = (min(earlier) - sign * best) / max(abs(min(earlier)), 1e-12)
        if gain < rule.min_gain:
            return f"{rule.metric} got better by {gain:.2%} over the last {rule.window_steps} steps, less than {rule.min_gain:.2%}"
    return None
