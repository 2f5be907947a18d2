"""Trials out of Optuna's tables as plain rows: through Optuna's own objects ten thousand take several times as long."""

from __future__ import annotations

import functools
import gc
import json
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import sqlalchemy
from optuna.distributions import BaseDistribution, json_to_distribution
from optuna.storages._rdb import models
from optuna.trial import FrozenTrial
from sqlalchemy.orm import Session

_Rows = dict[int, list[Any]]


@contextmanager
def uncollected() -> Iterator[None]:
    """No looking for garbage meanwhile: among a million objects that stay it takes as long as making them."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def read_trials(session: Session, study_id: int, included: Collection[int] = (), after: int = -1) -> list[FrozenTrial]:
    """The trials of a study whose id is beyond ``after`` or ``included``, in the order of their ids."""
    trial = models.TrialModel
    wanted = sqlalchemy.and_(
        trial.study_id == study_id, sqlalchemy.or_(trial.trial_id > after, trial.trial_id.in_(included))
    )
    rows: Sequence[Any] = session.scalars(sqlalchemy.select(trial).where(wanted)).all()
    if not rows:
        return []
    value, step, param = models.TrialValueModel, models.TrialIntermediateValueModel, models.TrialParamModel
    user, system = models.TrialUserAttributeModel, models.TrialSystemAttributeModel
    read = functools.partial(_by_trial, session, wanted)
    values = read(value, (value.objective, value.value, value.value_type))
    steps = read(step, (step.step, step.intermediate_value, step.intermediate_value_type))
    params = read(param, (param.param_id, param.param_name, param.param_value, param.distribution_json))
    users, systems = (read(each, (each.key, each.value_json)) for each in (user, system))
    return [
        FrozenTrial(
            number=row.number,
            state=row.state,
            value=None,
            values=_values(values[row.trial_id]),
            datetime_start=row.datetime_start,
            datetime_complete=row.datetime_complete,
            **_params(params[row.trial_id]),  # type: ignore[arg-type]
            user_attrs={key: json.loads(text) for key, text in users[row.trial_id]},
            system_attrs={key: json.loads(text) for key, text in systems[row.trial_id]},
            intermediate_values={
                at: step.stored_repr_to_intermediate_value(number, kind) for at, number, kind in steps[row.trial_id]
            },
            trial_id=row.trial_id,
        )
        for row in sorted(rows, key=lambda row: row.trial_id)
    ]


def _by_trial(session: Session, wanted: Any, table: Any, columns: Sequence[Any]) -> _Rows:
    """The rows of a table that belong to the wanted trials, by the trials' ids."""
    found: _Rows = defaultdict(list)
    joined = sqlalchemy.select(table.trial_id, *columns).join(
        models.TrialModel, models.TrialModel.trial_id == table.trial_id
    )
    for trial_id, *row in session.execute(joined.where(wanted)):
        found[trial_id].append(row)
    return found


def _values(rows: list[Any]) -> list[float] | None:
    to_number = models.TrialValueModel.stored_repr_to_value
    return [to_number(number, kind) for _, number, kind in sorted(rows, key=lambda row: row[0])] or None


def _params(rows: list[Any]) -> dict[str, dict[str, Any]]:
    ordered = [(name, number, _distribution(text)) for _, name, number, text in sorted(rows, key=lambda row: row[0])]
    return {
        "params": {name: distribution.to_external_repr(number) for name, number, distribution in ordered},
        "distributions": {name: distribution for name, _, distribution in ordered},
    }


@functools.lru_cache(maxsize=256)
def _distribution(text: str) -> BaseDistribution:
    """One for all trials that have the same."""
    return json_to_distribution(text)
