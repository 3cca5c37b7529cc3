"""Losses of logits, and their derivatives, for CPUs; losses.c has the loops.

Shapes: N tokens, V vocabulary.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from minillm.kernels.library import KINDS, check, functions


class _Sampled(ctypes.Structure):
    """As in losses.c."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("student", "teacher", "tokens", "known")),
        *((name, ctypes.c_void_p) for name in ("logprobs", "divergences", "largest", "log_totals")),
        *((name, ctypes.c_void_p) for name in ("by_logprobs", "by_divergences", "by_student")),
        *((name, ctypes.c_long) for name in ("rows", "count", "student_stride", "teacher_stride")),
        *((name, ctypes.c_int) for name in ("student_kind", "teacher_kind")),
    )


class SampledTerms:
    """log p(token) and KL(p || q) of logits (N, V), `logprobs` and `divergences` (N,), and their derivative.

    student, teacher: logits; each may be float32 or bfloat16, and with room between its rows.
    known: (N,), log q(token).
    """

    def __init__(self, student: Tensor, teacher: Tensor, token_ids: Tensor, known: Tensor) -> None:
        self._student, self._kept, rows = student, (teacher, token_ids, known), student.shape[:1]
        self.logprobs, self.divergences, *self._totals = (torch.empty(rows) for _ in range(4))
        given = self._given = _Sampled()
        for part in (student, teacher):
            check(part[:0], (0, student.shape[1]), *KINDS)
            assert part.shape == student.shape and part.stride(1) == 1 and part.stride(0) >= part.shape[1]
        given.student, given.teacher = student.data_ptr(), teacher.data_ptr()
        given.student_stride, given.teacher_stride = student.stride(0), teacher.stride(0)
        given.tokens, given.known = check(token_ids, rows, torch.int64), check(known, rows, torch.float32)
        given.logprobs, given.divergences = self.logprobs.data_ptr(), self.divergences.data_ptr()
        given.largest, given.log_totals = (part.data_ptr() for part in self._totals)
        given.rows, given.count = student.shape
        assert not len(token_ids) or 0 <= int(token_ids.min()) <= int(token_ids.max()) < given.count
        given.student_kind, given.teacher_kind = KINDS[student.dtype], KINDS[teacher.dtype]
        functions().sampled_forward(ctypes.byref(given))

    def backward(self, by_logprobs: Tensor, by_divergences: Tensor) -> Tensor:
        """Return the gradient of the student's logits (N, V), laid out as they are, from those of both terms (N,)."""
        given, student, rows = self._given, self._student, self.logprobs.shape
        result = student.new_empty_strided(student.shape, student.stride())
        gradients = [part.contiguous() for part in (by_logprobs, by_divergences)]
        given.by_logprobs, given.by_divergences = (check(part, rows, torch.float32) for part in gradients)
        given.by_student = result.data_ptr()
        functions().sampled_backward(ctypes.byref(given))
        return result
