"""Triton kernels of the operators, for GPUs; their results equal those of the bodies for the CPU.

The modules import Triton, so the operators import them at the first call on a GPU. They have not been measured on a GPU
yet: the tests run them under Triton's interpreter and compile them for real architectures.
"""
