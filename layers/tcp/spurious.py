"""Spurious reductions of the window: three ways to detect that segments were late and not lost.

F-RTO (RFC 5682) after a timeout; a timestamp echo that is older than the retransmission (Eifel, RFC 3522); and D-SACK
blocks that report all retransmitted octets as duplicates (RFC 3708).
"""

from __future__ import annotations

from layers.tcp.retransmission import LOSS, SPURIOUS, Frto
from layers.tcp.scoreboard import Scoreboard

TICK_S = 0.001  # the unit of timestamps


class Doubt:
    """The doubt about the last reduction of one connection. Numbers, float seconds."""

    __slots__ = ("_resent_octets", "frto", "resent_at", "una")

    def __init__(self) -> None:
        self.frto = Frto()
        self.una: int | None = None  # SND.UNA at the reduction; None: no doubt
        self.resent_at = 0.0  # time of the first retransmission since; 0: none yet
        self._resent_octets = 0  # minus the duplicates

    def begin(self, una: int) -> None:
        """The window is reduced."""
        self.una, self.resent_at, self._resent_octets = una, 0.0, 0

    def resent(self, octets: int, now: float) -> None:
        """This many octets are retransmitted."""
        if self.una is not None:
            self.resent_at = self.resent_at or now
            self._resent_octets += octets

    def end(self) -> None:
        """It is known whether the reduction was spurious."""
        self.una, self.frto.step = None, 0

    def mistaken(self, board: Scoreboard, advanced: bool, duplicate: bool, echoes_at: float | None,
                 recovering: bool) -> bool:
        """True if the reduction was spurious, after an acknowledgment that `board` has processed.

        `echoes_at`: when the segment of its timestamp echo was sent.
        """
        verdict = self.frto.acknowledged(board.una, board.first_sent_once is not None, duplicate and not advanced,
                                         echoes_at)
        if self.una is None or verdict == LOSS:
            return False
        if board.dsack is not None and board.dsack[0] >= self.una and self._resent_octets:
            self._resent_octets -= board.dsack[1] - board.dsack[0]
            if self._resent_octets <= 0:
                return True  # RFC 3708: every retransmitted octet has arrived twice
        if (recovering and self.resent_at and echoes_at is not None and board.una > self.una
                and echoes_at + 2 * TICK_S < self.resent_at):
            return True  # RFC 3522: it acknowledges the original
        return verdict == SPURIOUS
