"""optuna-dashboard on a study, with our figures on the study page."""

from __future__ import annotations

import importlib.util

import optuna

from search.plots import growth_figure, pareto_data, pareto_figure, parts_figure
from search.points import baseline_points, hypervolumes, trial_points
from search.spec import Constraints
from spaces.errors import SplitsearchError


def save_figures(study: optuna.Study, limits: Constraints) -> None:
    """Put our figures onto the dashboard's study page: front, latency parts, growth. Nothing without the extra."""
    if importlib.util.find_spec("optuna_dashboard") is None:
        return
    from optuna_dashboard import save_plotly_graph_object

    data = pareto_data(trial_points(study), baseline_points(study))
    save_plotly_graph_object(study, pareto_figure(data), graph_object_id="pareto")
    save_plotly_graph_object(study, parts_figure(data.front, data.baselines), graph_object_id="latency-parts")
    save_plotly_graph_object(study, growth_figure(hypervolumes(study, limits)), graph_object_id="growth")


def serve(study: optuna.Study, port: int) -> None:
    """Serve the dashboard of a study's storage on 127.0.0.1 until interrupted.

    Raises:
        SplitsearchError: optuna-dashboard is not installed, or the port is taken.
    """
    if importlib.util.find_spec("optuna_dashboard") is None:
        raise SplitsearchError("optuna-dashboard is not installed; pip install 'splitsearch[dashboard]'")
    from optuna_dashboard import run_server

    try:
        run_server(study._storage, host="127.0.0.1", port=port)
    except OSError as error:
        raise SplitsearchError(f"port {port} cannot be used ({error.strerror}); give another with --port") from None
