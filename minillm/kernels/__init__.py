"""Loops over memory in C, for CPUs: several of the library's operations in one pass."""
