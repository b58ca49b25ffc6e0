"""How many bytes of logits the response loss holds on a GPU, at most: the one place for the loss and for estimates."""

BYTES_OF_A_CHUNK = 256 << 20
"""Logits in float32 of one model for a chunk of tokens; a product takes longer with them than reading a head does."""

TENSORS_OF_A_CHUNK = 8
"""Tensors of this size at a time: logits, probabilities and log-probabilities of student, teacher and target."""

KEPT_BYTES = 1 << 30
"""Logits and derivatives of a micro-batch that are kept from the forward to the backward pass. Each process keeps its
own, however processes share the student; none are kept in half precision, for then policy and response are two passes.
"""

WORKING_BYTES = TENSORS_OF_A_CHUNK * BYTES_OF_A_CHUNK + KEPT_BYTES
"""All of them, whatever the vocabulary."""
