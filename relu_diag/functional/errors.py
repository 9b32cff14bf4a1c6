"""Errors that a caller may want to tell from others."""


class NotFiniteError(ValueError):
    """A value is NaN or infinite.

    Example:
        >>> from relu_diag import ShallowBlock
        >>> import torch
        >>> try:
        ...     ShallowBlock(W=torch.tensor([[torch.nan]]), H=torch.ones(1, 1))
        ... except NotFiniteError as error:
        ...     print(error)
        `W` has NaN or infinite entries: the training diverged, or the data needs cleaning.
    """
