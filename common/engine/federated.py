# SPDX-License-Identifier: Apache-2.0
"""Workflows of a federated client (``monai.fl.client.MonaiAlgo``).

The client reads ``train.json`` for its trainer, and ``train.json`` with ``evaluate.json`` on top for its evaluator. It
takes both from workflows that are initialised and never run, and puts weights of the server into their networks.
"""

from __future__ import annotations

import sys
from typing import Any

from monai.bundle import ConfigParser

from common.engine.workflow import caller_of

_BEGINNING = ("start", "phantoms", "determinism")
"""What ``train`` begins with that no other item refers to: nothing else would run it."""


def federated_client() -> Any | None:
    """The client that initialises the running workflow; None outside of federated learning."""
    # Its module takes part in the import of much else: who has a client has imported it.
    module = sys.modules.get("monai.fl.client.client_algo")
    return None if module is None else caller_of(module.BaseClient)


def leave_to_client(parser: ConfigParser, client: Any) -> None:
    """Take the bundle's folder from the client, which sets it only later, and no weights where these come from it.

    Args:
        parser: of the workflow, changed in place.
        client: whose ``disable_ckpt_loading``, True unless set, says that weights come from the server.
    """
    parser["bundle_root"] = client.bundle_root
    if "train" in parser and "evaluate" in parser and getattr(client, "disable_ckpt_loading", True):
        parser["network"] = "$@network_def.to(@device)"


def begin_as_client(parser: ConfigParser) -> None:
    """Do what a training begins with: look at the folders, make phantoms where they are the data, and seed.

    Raises:
        InputError: as :func:`common.engine.restart_and_check`.
    """
    for name in _BEGINNING:
        if f"train::{name}" in parser:
            parser.get_parsed_content(f"train::{name}")
    parser.parse()
