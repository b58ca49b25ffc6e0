"""Whether the hub of Hugging Face can be reached: tried once, before a process reads the first thing from it.

Without a network huggingface_hub tries to reach each file that its cache lacks six times, which takes 23 s, before
datasets and transformers take what their caches have.
"""

from __future__ import annotations

import functools
import sys

from rld.utils import secrets
from rld.utils.messages import one_line, tell_of_this_process


@functools.cache
def use_caches_if_unreachable() -> None:
    """Let huggingface_hub, datasets and transformers read their caches alone if the hub cannot be reached; tell so.

    It is reached as huggingface_hub reaches it, by its proxies and within its time limit (`HF_HUB_ETAG_TIMEOUT`, 10 s).
    Any answer will do: what its status means for a file is for the libraries to say. Each process of a distributed run
    tells it, because some may reach the hub and read other files than those that do not.
    """
    import httpx2
    from huggingface_hub import constants, get_session

    if constants.is_offline_mode():
        return
    try:
        get_session().head(constants.ENDPOINT, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    # The last two are of addresses and proxies that cannot be used, such as a SOCKS proxy without its package.
    except (httpx2.RequestError, httpx2.InvalidURL, ImportError, ValueError) as error:
        constants.HF_HUB_OFFLINE = True
        if "datasets" in sys.modules:  # which else reads that constant when it is imported
            import datasets

            datasets.config.HF_HUB_OFFLINE = True
        reason = one_line(error) or type(error).__name__
        text = f"{constants.ENDPOINT} cannot be reached ({reason}): data sets and models are those in the caches here"
        tell_of_this_process(secrets.masked_text(text))
