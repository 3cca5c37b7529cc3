"""Losses of logits, and their derivatives, for CPUs; losses.c has the loops.

Shapes: N tokens, V vocabulary.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from minillm.kernels.compiled import KINDS, check, functions, room


class _Sampled(ctypes.Structure):
    """As in losses.c."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("student", "teacher", "tokens", "known")),
        *((name, ctypes.c_void_p) for name in ("logprobs", "divergences", "largest", "log_totals")),
        *((name, ctypes.c_void_p) for name in ("by_logprobs", "by_divergences", "by_student")),
        *((name, ctypes.c_long) for name in ("rows", "count", "student_stride", "teacher_stride")),
        *((name, ctypes.c_int) for name in ("student_kind", "teacher_kind")),
    )


def sampled_terms(student: Tensor, teacher: Tensor, token_ids: Tensor, known: Tensor) -> tuple[Tensor, ...]:
    """Return log p(token), KL(p || q) (...), and two tensors that the derivative takes, from logits (..., V).

    student, teacher: each may be float32 or bfloat16. token_ids, known: (...), the tokens and log q(token).
    """
    results = tuple(room(token_ids.shape) for _ in range(4))
    given, _kept = _given(student, teacher, token_ids, known)
    given.logprobs, given.divergences, given.largest, given.log_totals = (part.data_ptr() for part in results)
    functions().sampled_forward(ctypes.byref(given))
    return results


def sampled_terms_backward(
    inputs: tuple[Tensor, Tensor, Tensor, Tensor], results: tuple[Tensor, ...], gradients: tuple[Tensor, Tensor]
) -> Tensor:
    """Return the gradient of the student's logits (..., V), in their type, from those of the two terms (...).

    inputs, results: what `sampled_terms` was given, and all but the first of what it returned.
    """
    student, shape = inputs[0], inputs[2].shape
    by_student = student.new_empty(student.shape)
    gradients = gradients[0].contiguous(), gradients[1].contiguous()
    given, _kept = _given(*inputs)
    given.divergences, given.largest, given.log_totals = (check(part, shape, torch.float32) for part in results)
    given.by_logprobs, given.by_divergences = (check(part, shape, torch.float32) for part in gradients)
    given.by_student = by_student.data_ptr()
    functions().sampled_backward(ctypes.byref(given))
    return by_student


def _given(student: Tensor, teacher: Tensor, token_ids: Tensor, known: Tensor) -> tuple[_Sampled, list[Tensor]]:
    """Return what both passes are told, and the tensors that have to live as long."""
    given, num_logits = _Sampled(), student.shape[-1]
    assert student.shape == teacher.shape == (*token_ids.shape, num_logits) and known.shape == token_ids.shape
    assert not token_ids.numel() or 0 <= int(token_ids.min()) <= int(token_ids.max()) < num_logits
    logits, others = [_rows(part) for part in (student, teacher)], [token_ids.contiguous(), known.contiguous()]
    given.student, given.teacher = (part.data_ptr() for part in logits)
    given.student_stride, given.teacher_stride = (part.stride(0) for part in logits)
    given.student_kind, given.teacher_kind = (KINDS[part.dtype] for part in logits)
    given.tokens = check(others[0], token_ids.shape, torch.int64)
    given.known = check(others[1], token_ids.shape, torch.float32)
    given.rows, given.count = token_ids.numel(), num_logits
    return given, [*logits, *others]


def _rows(logits: Tensor) -> Tensor:
    """Return (N, V) as it is in memory, with room between rows, or else as a copy."""
    check(logits.new_empty(0), (0,), *KINDS)
    rows = logits.reshape(-1, logits.shape[-1])
    return rows if rows.stride(1) == 1 and rows.stride(0) >= rows.shape[1] else rows.contiguous()
