"""Defects that tests must notice: faults of published implementations, and what would waste a run in silence."""

from __future__ import annotations

# name: file, code, what stands in its place.
PUBLISHED = {
    "padding in the mask": (
        "minillm/sampling.py",
        "self.mask[self.active, position] = token_ids, self.running",
        "self.mask[self.active, position] = token_ids, torch.ones_like(self.running)",
    ),
    "padding in the rewards": (
        "minillm/advantages.py",
        "torch.where(response_mask, teacher_logprobs - old_logprobs, 0.0).detach()",
        "(teacher_logprobs - old_logprobs).detach()",
    ),
    "undetached advantage": (
        "minillm/advantages.py",
        "torch.where(response_mask, teacher_logprobs - old_logprobs, 0.0).detach()",
        "torch.where(response_mask, teacher_logprobs - old_logprobs, 0.0)",
    ),
    "a reward counted twice": (
        "minillm/advantages.py",
        'if returns_from == "next":',
        'if returns_from == "never":',
    ),
    "positions that run on from text to text": (
        "minillm/packed_rows.py",
        "position_ids=columns.nonzero()[:, 1][None],",
        "position_ids=None,",
    ),
    "positions that run on in our own layers": (
        "minillm/lean_body.py",
        "columns.nonzero()[:, 1])",
        "torch.arange(int(columns.sum())))",
    ),
    "missing position ids with left padding": (
        "minillm/decoders.py",
        "            position_ids=position_ids(mask)[:, -token_ids.shape[1] :],\n",
        "",
    ),
    "whitening over padding": (
        "minillm/advantages.py",
        "values = returns[counted]",
        "values = returns.flatten()",
    ),
    "means over the micro-batch": (
        "minillm/update.py",
        "[part.response_mask] / total_weight",
        "[part.response_mask] / float(part.response_mask.sum())",
    ),
    "single step scaled by accumulation": (
        "minillm/objective.py",
        "single_step_weight * terms.single_step_weights * divergence",
        "single_step_weight * terms.single_step_weights * divergence / len(divergence)",
    ),
    "the length flag changes nothing": (
        "minillm/advantages.py",
        "    if length_normalize:\n        counts",
        "    if True:\n        counts",
    ),
    "teacher rewards without the temperature": (
        "minillm/rollout.py",
        "kept_logprobs(teacher, texts, states, temperature, compute, drawn",
        "kept_logprobs(teacher, texts, states, 1.0, compute, drawn",
    ),
    "the prefix weight left out": (
        "minillm/advantages.py",
        "rewards * weights,",
        "rewards,",
    ),
}

SILENT = {
    "several pending tokens see each other": (
        "minillm/lean_decoder.py",
        "visible = visible & (columns <= columns[-self._num_new :, None])",
        "visible = visible & (columns >= 0)",
    ),
    "kept states are one late": (
        "minillm/decoders.py",
        "self._first = 1 - self._mask.shape[1]",
        "self._first = -self._mask.shape[1]",
    ),
    "states of retired rows are lost": (
        "minillm/decoders.py",
        "        if self._kept is not None:\n            self.flush()\n",
        "",
    ),
    "the head learns from the last chunk only": (
        "minillm/gradients.py",
        "beta=0 if is_new else 1",
        "beta=0",
    ),
    "a piece of the head's gradient is left out": (
        "minillm/gradients.py",
        "range(0, len(outer), _PIECE_ROWS)",
        "range(0, len(outer) - _PIECE_ROWS + 1, _PIECE_ROWS)",
    ),
    "gradients reach keys and values from padding": (
        "minillm/lean_attention.py",
        "        layout.clear_padding(weights, num_heads)\n",
        "",
    ),
    "a bias learns nothing": (
        "minillm/lean_parts.py",
        "                accumulate(bias, part)\n",
        "                pass\n",
    ),
    "the norm's own derivative left out": (
        "minillm/lean_parts.py",
        "addcmul_(values, means)",
        "clone()",
    ),
    "the order of heads left in the gradient": (
        "minillm/gradients.py",
        "in_order(outer.t() @ states, order)",
        "outer.t() @ states",
    ),
    "queries scaled, their gradient not": (
        "minillm/lean_attention.py",
        "rotation.conj(), scaling)",
        "rotation.conj(), 1)",
    ),
    "a layer that runs again keeps everything": (
        "minillm/lean_body.py",
        "again = torch.is_grad_enabled() and is_recomputed(layer)",
        "again = False",
    ),
    "the head reads the gradient's place": (
        "minillm/heads.py",
        "student.head.backward(own, student.states[places])",
        "student.head.backward(chunks[-1], student.states[places])",
    ),
    "gradients pile up": ("minillm/optimization.py", "    put_away(model.parameters())\n", ""),
    "a gradient's memory is given away twice": (
        "minillm/gradients.py",
        "vars(parameter).pop(_KEPT, None)",
        "vars(parameter).get(_KEPT)",
    ),
    "the divergence lacks a constant": (
        "minillm/divergences.py",
        "return logprobs, means - constants",
        "return logprobs, means",
    ),
    "small probabilities lost": ("minillm/divergences.py", "    if is_lost.any():", "    if False:"),
    "a cache forgets what it held": (
        "minillm/decoders.py",
        "memory.narrow(2, start, num_new).copy_(part)",
        "memory.narrow(2, 0, num_new).copy_(part)",
    ),
    "hooks are passed over": ("minillm/llama_family.py", "        and not hooked\n", ""),
    "no temperature in the update": (
        "minillm/types.py",
        "if temperature == 1:",
        "if True:",
    ),
    "no temperature in the sampler": (
        "minillm/sampling.py",
        "logits if temperature == 1 else logits / temperature",
        "logits",
    ),
    "one stream for tokens and components": ("minillm/draws.py", "    COMPONENTS = 2\n", "    COMPONENTS = 1\n"),
    "whose pick it is forgotten when rows retire": (
        "minillm/sampling.py",
        "picks = self._picks[:, position].to(active.device)[active]",
        "picks = self._picks[:, position].to(active.device)[: len(active)]",
    ),
    "a head's width from the model's": (
        "minillm/lean_decoder.py",
        "self.head_size = body.layers[0].self_attn.head_dim",
        "self.head_size = config.hidden_size // config.num_attention_heads",
    ),
    "biases of packed layers in another order than their weights": (
        "minillm/packed_linear.py",
        "joined([layer.bias for layer in layers], order)",
        "joined([layer.bias for layer in layers], None)",
    ),
    "packed weights for one number of rows": (
        "minillm/packed_linear.py",
        "self._bias, num_rows)",
        "self._bias, _MKL_ROWS)",
    ),
    "packing changes the model itself": (
        "minillm/packed_model.py",
        "known[module] = own = _twin(module)",
        "known[module] = own = module",
    ),
    "a packed head without its cap": (
        "minillm/decoders.py",
        "return head.capped(layer(states.to(layer.weight.dtype)) if is_linear else head.projected(states))",
        "return layer(states).float() if is_linear else head.capped(head.projected(states))",
    ),
    "a model packed once for all phases": (
        "minillm/packed_model.py",
        "    result = _copied(model, {})\n",
        "    result = vars(model).get('kept') or _copied(model, {})\n    vars(model)['kept'] = result\n",
    ),
    "padding among the tokens": (
        "minillm/lean_decoder.py",
        "rows.index_copy_(0, self.places, values)",
        "rows.index_copy_(0, torch.arange(len(self.places)), values)",
    ),
    "no discount": ("minillm/methods/policy.py", "        gamma=section.gamma,\n", "        gamma=1.0,\n"),
    "the order of the first epoch again": (
        "minillm/update.py",
        "key = (phase - 1) * self._recipe.inner_epochs + epoch",
        "key = phase - 1",
    ),
    "every phase draws alike": ("minillm/methods/interface.py", "replace(self.decoding, step=phase)", "self.decoding"),
    "one draw for a whole group": (
        "minillm/rollout.py",
        "row_ids = range(first_row_id, first_row_id + len(prompts))",
        "row_ids = [first_row_id] * len(prompts)",
    ),
    "groups not consecutive": (
        "minillm/methods/policy.py",
        "[index for index in indices for _ in range(size)]",
        "[index for _ in range(size) for index in indices]",
    ),
    "one inner epoch only": (
        "minillm/update.py",
        "for epoch in range(self._recipe.inner_epochs):",
        "for epoch in range(1):",
    ),
    "every validation is best": (
        "minillm/distiller.py",
        "bool(scores) and best.improves(scores), phase",
        "bool(scores), phase",
    ),
    "the sampler never learns": ("minillm/distiller.py", "        refresh_sampler(actors)\n", ""),
    "the mixture never moves": (
        "minillm/methods/interface.py",
        "return (phase - 1) / max(self.config.num_phases - 1, 1)",
        "return 0.0",
    ),
    "the corpus never advances": (
        "minillm/update.py",
        "range(self._num_steps * size, (self._num_steps + 1) * size)",
        "range(size)",
    ),
    "the teacher's share swapped": (
        "minillm/objective.py",
        "(1 - teacher_share) * loss + teacher_share *",
        "teacher_share * loss + (1 - teacher_share) *",
    ),
    "entropy punished": (
        "minillm/objective.py",
        "loss = loss - entropy_weight * spread",
        "loss = loss + entropy_weight * spread",
    ),
    "no rise of the learning rate": (
        "minillm/update.py",
        "num_warmup_steps=config.num_warmup_steps,",
        "num_warmup_steps=0,",
    ),
    "validation samples from the teacher": (
        "minillm/validation.py",
        "generate_responses(actors.sampler,",
        "generate_responses(actors.teacher,",
    ),
    "evaluation ignores its seeds": ("tasks/evaluate.py", "            seed=seed,", "            seed=10,"),
    "the data's weight swapped": (
        "minillm/methods/supervised.py",
        "(1 - self._data_weight) * divergence + self._data_weight * data_loss",
        "self._data_weight * divergence + (1 - self._data_weight) * data_loss",
    ),
    "kd and reverse_kd swapped": (
        "minillm/methods/__init__.py",
        "return WordLevel(run, forward_kl, config.kd.data_weight)",
        "return WordLevel(run, reverse_kl, config.kd.data_weight)",
    ),
    "a group's mean over tokens": ("minillm/advantages.py", "        counted[:, 1:] = False\n", "        pass\n"),
    "the task reward on the last token only": (
        "minillm/advantages.py",
        "returns + weights[:, -1:] * task_rewards[:, None]",
        "returns + weights[:, -1:] * task_rewards[:, None] * (mask.cumsum(1) == mask.sum(1, keepdim=True))",
    ),
    "truncation forgets top-p": ("minillm/truncation.py", "    if top_p < 1:", "    if False:"),
    "a fixed count of teacher tokens": (
        "minillm/draws.py",
        "return [bool(draw < teacher_mix_alpha) for draw in draws]",
        "return [int((t + 1) * teacher_mix_alpha) > int(t * teacher_mix_alpha) for t in range(len(draws))]",
    ),
    "a fixed count of teacher tokens at random places": (
        "minillm/draws.py",
        "return [bool(draw < teacher_mix_alpha) for draw in draws]",
        "return [bool(rank < round(teacher_mix_alpha * num_tokens)) for rank in draws.argsort().argsort()]",
    ),
    "fewer patterns than asked for": (
        "minillm/generation.py",
        "place * decoding.mask_groups // num_rows",
        "place // -(-num_rows // decoding.mask_groups)",
    ),
    "a head's own code is left out of decoding": (
        "minillm/sampling.py",
        "is_supported(model) and isinstance(Head.of(model), LinearHead)",
        "is_supported(model)",
    ),
    "a chunk beyond its budget": (
        "minillm/heads.py",
        "step = min(_ROUND_TOKENS, fitting)",
        "step, fitting = _ROUND_TOKENS, max(_ROUND_TOKENS, fitting)",
    ),
    "weights of tokens in float32": ("minillm/update.py", "response_mask.double()", "response_mask.float()"),
}
