"""Was a reduction of the window a mistake? Three ways to find out that nothing was lost, only late.

F-RTO (RFC 5682) after a time-out; the echo of a timestamp that is older than the retransmission (Eifel, RFC 3522); and
D-SACK blocks that report all that was sent again as received twice (RFC 3708).
"""

from __future__ import annotations

from layers.tcp.retransmission import LOSS, SPURIOUS, Frto
from layers.tcp.scoreboard import Scoreboard

TICK_S = 0.001  # of timestamps


class Doubt:
    """About the last reduction of one connection. Numbers, float seconds."""

    __slots__ = ("_resent_octets", "frto", "resent_at", "una")

    def __init__(self) -> None:
        self.frto = Frto()
        self.una: int | None = None  # SND.UNA when the window was reduced; None: there is nothing to doubt
        self.resent_at = 0.0  # when something was first sent again since; 0: not yet
        self._resent_octets = 0  # less what came twice

    def begin(self, una: int) -> None:
        """The window is reduced."""
        self.una, self.resent_at, self._resent_octets = una, 0.0, 0

    def resent(self, octets: int, now: float) -> None:
        """So much is sent again."""
        if self.una is not None:
            self.resent_at = self.resent_at or now
            self._resent_octets += octets

    def end(self) -> None:
        """It is settled."""
        self.una, self.frto.step = None, 0

    def mistaken(self, board: Scoreboard, advanced: bool, duplicate: bool, echoes_at: float | None,
                 recovering: bool) -> bool:
        """After an acknowledgment that `board` has taken. `echoes_at`: when what its timestamp echoes was sent."""
        verdict = self.frto.acknowledged(board.una, board.first_sent_once is not None, duplicate and not advanced,
                                         echoes_at)
        if self.una is None or verdict == LOSS:
            return False
        if board.dsack is not None and board.dsack[0] >= self.una and self._resent_octets:
            self._resent_octets -= board.dsack[1] - board.dsack[0]
            if self._resent_octets <= 0:
                return True  # RFC 3708: each octet that was sent again has come twice
        if (recovering and self.resent_at and echoes_at is not None and board.una > self.una
                and echoes_at + 2 * TICK_S < self.resent_at):
            return True  # RFC 3522: the acknowledgment answers the original
        return verdict == SPURIOUS
