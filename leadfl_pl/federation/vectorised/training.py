"""Vectorised local training, in the place of sequential one."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from leadfl_pl.core.errors import ConfigError
from leadfl_pl.core.rng import derive_seed, generator, isolated_rng
from leadfl_pl.core.values import Cohort
from leadfl_pl.federation.local import LocalTraining
from leadfl_pl.federation.vectorised.round import Member, Settings, VectorisedRound


class VectorisedFailed(UserWarning):
    """Something raised while a round's clients trained at once; it is done again one by one."""


class VectorisedTraining(LocalTraining):
    """Runs this rank's clients of a round at once, and hands out their updates one by one.

    The updates are those of :class:`~leadfl_pl.federation.local.LocalTraining` up to rounding: every client
    sees the same batches and the same noise. Tested is that none differs by more than 2e-5 of its
    norm after 6 local steps in float32 (seen: 7e-6), and by more than 1e-10 in float64 (5e-12).
    Over many rounds a run moves away as after any change of a last bit.

    The Trainer's hooks of a client are called when all have been trained. Memory grows with the
    number of clients. Code of a defense or an attack without the mark of
    :func:`~leadfl_pl.takes_stacks` runs client by client.
    """

    execution = "vectorised"
    _rows: dict[int, Tensor]  # by position in the cohort, of the round that was prepared

    def prepare(self, cohort: Cohort, positions: Sequence[int], last_update: Tensor | None) -> None:
        self._rows = {}
        try:
            self._rows = self.train_together(cohort, positions, last_update)
        except ConfigError:
            raise
        except Exception as error:  # of one client perhaps, which will be left out
            warnings.warn(
                f"round {cohort.round}: vectorised training raised {error!r}; its clients are "
                "trained one after the other",
                VectorisedFailed,
                stacklevel=2,
            )

    def train(self, cohort: Cohort, position: int, last_update: Tensor | None) -> Tensor:
        if position in self._rows:
            return self._rows.pop(position)
        return super().train(cohort, position, last_update)

    def train_together(
        self, cohort: Cohort, positions: Sequence[int], last_update: Tensor | None
    ) -> dict[int, Tensor]:
        """The packed updates of the clients at ``positions``, by position."""
        if not positions:
            return {}
        start = self.read_global()
        members = self._members(cohort, positions, last_update)
        try:
            with isolated_rng(), self.trainer.precision_plugin.train_step_context():
                trained = VectorisedRound(
                    self.client.model,
                    members,
                    (self.client.defense, self.malicious_client.defense),
                    [self.momenta.get(m.client_id) for m in members],
                    self._settings(),
                )
                trained.train()
            return self._pack_all(trained, start.theta)
        finally:
            self.write_global(start)

    def _settings(self) -> Settings:
        return Settings(
            data=self.train_set,
            batch_size=self.batch_size,
            epochs=self.federation.local_epochs,
            steps=self.federation.local_steps,
            lr=self.trainer.optimizers[0].param_groups[0]["lr"],
            momentum=self.trainer.optimizers[0].param_groups[0]["momentum"],
            convert=self.trainer.precision_plugin.convert_input,
        )

    def _members(
        self, cohort: Cohort, positions: Sequence[int], last_update: Tensor | None
    ) -> list[Member]:
        """Honest ones by size, then malicious ones by size from above: the largest are together."""
        t, members = cohort.round, []
        for position in positions:
            client_id = cohort.client_ids[position]
            part, attack = self.parts[client_id], None
            if cohort.malicious[position]:
                data = self.train_set.take(part, self.vector.device)
                attack = self.local_attack(data, t, client_id, last_update)
            noise_seed = derive_seed(self.seed, "noise", t, client_id)
            member = Member(
                position,
                client_id,
                part,
                attack,
                generator(self.seed, "order", t, client_id),
                torch.Generator(self.vector.device).manual_seed(noise_seed),
                derive_seed(self.seed, "client", t, client_id),
            )
            members.append(member)

        def place(member: Member) -> tuple[bool, int]:
            malicious = member.attack is not None
            return malicious, -len(member.part) if malicious else len(member.part)

        return sorted(members, key=place)

    def _pack_all(self, trained: VectorisedRound, theta: Tensor) -> dict[int, Tensor]:
        """Reads row after row through the module, whose weights the caller puts back."""
        rows = {}
        for block in trained.blocks:
            regularisers = block.defense.regulariser(block.state)
            own = self.malicious_client.defense if block.malicious else self.client.defense
            for row in range(block.start, block.stop):
                member = trained.members[row]
                trained.stack.write_row(row)
                delta = own.finish(self.vector.read() - theta, member.noise)
                loss = trained.loss_sum[row] / block.limit
                penalty = torch.zeros_like(loss)
                if regularisers is not None:
                    penalty = regularisers[row - block.start]
                carried = None
                if self.federation.carry_momentum:
                    carried = torch.cat([theta[:0], *(m[row].reshape(-1) for m in trained.momenta)])
                rows[member.position] = self.pack(len(member.part), delta, carried, loss, penalty)
        return rows
