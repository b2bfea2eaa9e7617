# SPDX-License-Identifier: Apache-2.0
"""A part of the server that says which sites a round has lost; it travels in the job and imports nothing of ours."""

from __future__ import annotations

from collections.abc import Sequence

from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_context import FLContext
from nvflare.app_common.app_constant import AppConstants
from nvflare.app_common.app_event_type import AppEventType


class MissingSites(FLComponent):
    """Logs an error, a sentence, for each round that ends without a site; NVFlare averages the others in silence.

    Args:
        sites: names of all clients.
        timeout: seconds that a round waits, for the message.
    """

    def __init__(self, sites: Sequence[str], timeout: int) -> None:
        super().__init__()
        self.sites = sites
        self.timeout = timeout
        self.heard: set[str] = set()

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Note who answers a round, and compare when it ends."""
        if event_type == AppEventType.ROUND_STARTED:
            self.heard = set()
        elif event_type == AppEventType.AFTER_CONTRIBUTION_ACCEPT and fl_ctx.get_prop(
            AppConstants.AGGREGATION_ACCEPTED
        ):
            self.heard.add(fl_ctx.get_peer_context().get_identity_name())
        elif event_type == AppEventType.BEFORE_AGGREGATION:
            missing = [site for site in self.sites if site not in self.heard]
            if missing:
                self.log_error(fl_ctx, self._sentence(missing, fl_ctx.get_prop(AppConstants.CURRENT_ROUND)))

    def _sentence(self, missing: Sequence[str], number: int) -> str:
        others = [site for site in self.sites if site in self.heard]
        lost = f"Round {number} has no weights of {', '.join(missing)} after {self.timeout} s"
        if not others:
            return (
                f"{lost}, nor of any other site: start the sites again, and the job with --start_from its last weights."
            )
        return (
            f"{lost}: it averages those of {', '.join(others)} alone; look at the log of the other, and start it again."
        )
