"""Fetching timm's pretrained weights: said before it is done, soon given up without a network."""

from __future__ import annotations

import logging
import socket
import threading
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import timm
import torch

from cvtrain.errors import RunError, UsageError

log = logging.getLogger(__name__)

PATIENCE = 6.0
"""Seconds to wait for the first answer of a server; the hub's own client would retry for 47."""
FILES = ("model.safetensors", "pytorch_model.bin")
"""Under which names timm's weights lie on the hub, the preferred first."""


def fetch(name: str, body: Any, create: Callable[..., Any]) -> Any:
    """A timm model with its pretrained weights.

    Args:
        name: the model's name, for messages.
        body: the same model without weights; its ``pretrained_cfg`` says where they are.
        create: ``create(pretrained=True, ...)`` builds it.

    Raises:
        UsageError: timm has no weights for it.
        RunError: they could not be fetched.
    """
    config = body.pretrained_cfg
    hub, url = config.get("hf_hub_id"), config.get("url")
    if not hub and not url:
        raise UsageError(f"timm has no weights for {name}: leave backbone.pretrained=false")
    cached = _cached(config)
    if cached is not None:
        log.info("pretrained weights of %s: %s, fetched before", name, cached)
        if cached.suffix == ".safetensors" and not config.get("custom_load"):  # ask no hub
            return create(pretrained=True, pretrained_cfg_overlay={"file": str(cached)})
    else:
        server = _hub_url() if hub else str(url)
        reason = _unreachable(server)
        if reason is not None:
            raise _failed(name, f"{urlsplit(server).hostname} does not answer: {reason}")
        log.warning(
            "fetching pretrained weights of %s from %s, about %.0f MB, into %s",
            name,
            f"{urlsplit(server).hostname}/{hub}" if hub else url,
            sum(p.numel() for p in body.parameters()) * 4 / 1e6,
            _cache_folder(bool(hub)),
        )
    hub_log = logging.getLogger("huggingface_hub")
    level = hub_log.level
    hub_log.setLevel(logging.ERROR)  # it reports every retry
    try:
        return create(pretrained=True)
    except Exception as error:  # whatever the hub's client and the network come up with
        raise _failed(name, type(error).__name__) from error
    finally:
        hub_log.setLevel(level)


def fetch_file(url: str, what: str, megabytes: float, instead: str) -> Path:
    """A file of weights from the net, in torch's cache.

    Args:
        url: where it lies; its name ends in a hyphen and the first digits of its SHA-256.
        what: of what the weights are, for messages.
        megabytes: its size.
        instead: what to type where there is no network.

    Raises:
        RunError: it could not be fetched.
    """
    path = Path(_cache_folder(False)) / url.rpartition("/")[2]
    if path.is_file():
        log.info("%s: %s, fetched before", what, path)
        return path
    reason = _unreachable(url)
    if reason is None:
        log.warning("fetching %s from %s, about %.0f MB, into %s", what, url, megabytes, path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            prefix = path.stem.rpartition("-")[2]
            torch.hub.download_url_to_file(url, str(path), prefix, progress=False)
        except Exception as error:  # whatever the network and the disk come up with
            reason = " ".join(str(error).split()) or type(error).__name__
    else:
        reason = f"{urlsplit(url).hostname} does not answer: {reason}"
    if reason is not None:
        raise RunError(
            f"could not fetch {what} ({reason}); without a network, copy {url} here and say "
            f"{instead}"
        )
    return path


def _failed(name: str, why: str) -> RunError:
    return RunError(
        f"could not fetch the weights of {name} ({why}); without a network, copy them here and say "
        "backbone.weights=FILE backbone.pretrained=false"
    )


def _cached(config: dict[str, Any]) -> Path | None:
    """Where the weights lie already, or None."""
    if not config.get("hf_hub_id"):
        path = Path(torch.hub.get_dir()) / "checkpoints" / str(config["url"]).rpartition("/")[2]
        return path if path.is_file() else None
    from huggingface_hub import try_to_load_from_cache

    repository, _, revision = str(config["hf_hub_id"]).partition("@")
    given = config.get("hf_hub_filename")
    for file in (given,) if given else FILES:
        found = try_to_load_from_cache(repository, str(file), revision=revision or None)
        if isinstance(found, str):
            return Path(found)
    return None


def _hub_url() -> str:
    from huggingface_hub import constants

    return str(constants.ENDPOINT)


def _unreachable(url: str) -> str | None:
    """Why no connection to a server (or to the proxy before it) can be made; None where it can."""
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port or (80 if parts.scheme == "http" else 443)
    proxy = urllib.request.getproxies().get(parts.scheme or "https")
    if proxy and not urllib.request.proxy_bypass(host):
        there = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
        host, port = there.hostname or "", there.port or 80
    answer: list[str | None] = []

    def connect() -> None:
        try:
            socket.create_connection((host, port), timeout=PATIENCE).close()
            answer.append(None)
        except OSError as error:
            answer.append(error.strerror or str(error) or type(error).__name__)

    # A thread, as looking a name up takes no timeout.
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    return answer[0] if answer else f"nothing came in {PATIENCE:.0f} s"


def _cache_folder(hub: bool) -> str:
    if hub:
        from huggingface_hub.constants import HF_HUB_CACHE

        return str(HF_HUB_CACHE)
    return str(Path(torch.hub.get_dir()) / "checkpoints")


def exists(name: str) -> bool:
    """Whether timm has this model, and the tag where one is given."""
    return timm.is_model(name) and ("." not in name or timm.is_model_pretrained(name))
