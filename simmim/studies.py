"""Optuna's studies, which a sweep that is started again goes on with (`hydra/sweeper=optuna`)."""

from omegaconf import DictConfig, open_dict

from simmim.sweeps import is_minimised


def continue_study(config: DictConfig) -> None:
    """Settles what the sweeper is to do, by what its study holds.

    `n_trials` counts the study's finished trials. Those that were killed or failed are tried again, with
    the same values and so in the same directory; the study that they belong to has one sweep at a time.
    """
    import optuna

    sweeper = config.hydra.sweeper
    if sweeper.direction is None:
        with open_dict(sweeper):
            minimised = is_minimised(config.get("objective", "loss"))
            sweeper.direction = "minimize" if minimised else "maximize"
    if sweeper.storage is None or not isinstance(sweeper.direction, str):
        return
    study = optuna.create_study(
        study_name=sweeper.study_name,
        storage=sweeper.storage,
        direction=sweeper.direction,
        load_if_exists=True,
    )
    states = optuna.trial.TrialState
    settled = [trial.params for trial in study.trials if trial.state == states.COMPLETE]
    sweeper.n_trials = max(0, sweeper.n_trials - len(settled))
    settled += [
        trial.system_attrs["fixed_params"]
        for trial in study.trials
        if trial.state == states.WAITING
    ]
    for trial in study.trials:
        if trial.state == states.RUNNING:  # by a sweep that was killed
            study.tell(trial.number, state=states.FAIL)
        if trial.state in (states.RUNNING, states.FAIL) and trial.params not in settled:
            study.enqueue_trial(trial.params)
            settled.append(trial.params)
