"""The methods of distillation, one interface: what a method collects in a phase and what its tokens cost."""

from __future__ import annotations

from minillm.distill_config import DivergenceConfig
from minillm.divergences import Divergence, forward_kl, named_divergence, reverse_kl
from minillm.methods.interface import Method, Run
from minillm.methods.on_policy import GeneralizedDistillation
from minillm.methods.policy import PolicyGradient, grpo_credit, minillm_credit
from minillm.methods.supervised import FineTuning, WordLevel
from minillm.methods.writers import Writer, teacher_writer, text_writer
from minillm.task_rewards import TASK_REWARDS


def make_method(run: Run) -> Method:
    """Return the method that `run.config.method` names, with the knobs of its own section."""
    config = run.config
    match config.method:
        case "sft":
            return FineTuning(run)
        case "seqkd":
            return FineTuning(run, _writer(run))
        case "kd":
            return WordLevel(run, forward_kl, config.kd.data_weight)
        case "reverse_kd":
            return WordLevel(run, reverse_kl, config.reverse_kd.data_weight)
        case "gkd":
            return GeneralizedDistillation(run, _divergence(config.gkd.divergence))
    task_reward = TASK_REWARDS.get(config.objective.task_reward)
    if config.method == "grpo":
        return PolicyGradient(run, grpo_credit(config), 0.0, task_reward)
    return PolicyGradient(run, minillm_credit(config), config.minillm.single_step_weight, task_reward)


def _writer(run: Run) -> Writer:
    if run.config.seqkd.source == "teacher":
        return teacher_writer(run, run.config.seqkd.greedy)
    return text_writer(run, run.data.answers)


def _divergence(config: DivergenceConfig) -> Divergence:
    return named_divergence(config.name, **config.model_dump(exclude={"name"}))
