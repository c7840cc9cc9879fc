"""Optuna's studies, which a sweep that is started again goes on with (`hydra/sweeper=optuna`)."""

from omegaconf import DictConfig

from simmim.sweeps import is_minimised


def continue_study(config: DictConfig) -> None:
    """Settles what the sweeper is to do, by what its study holds.

    The study is kept in the sweep's directory and looks for the best `objective`, unless `storage` and
    `direction` are typed. `n_trials` counts its finished trials. Those that were killed or failed are
    tried again, with the same values and so in the same directory; one sweep at a time has a study.
    """
    import optuna

    sweeper = config.hydra.sweeper
    typed = {str(option).partition("=")[0] for option in config.hydra.overrides.hydra}
    if "hydra.sweeper.direction" not in typed:
        sweeper.direction = "minimize" if is_minimised(config.objective) else "maximize"
    if "hydra.sweeper.storage" not in typed:
        sweeper.storage = f"sqlite:///{config.hydra.sweep.dir}/study.db"
        sweeper.study_name = sweeper.study_name or config.hydra.job.name
    # Of several objectives or without a memory, each start is a study of its own.
    if None in (sweeper.storage, sweeper.study_name) or not isinstance(sweeper.direction, str):
        return
    study = optuna.create_study(
        study_name=sweeper.study_name,
        storage=sweeper.storage,
        direction=sweeper.direction,
        load_if_exists=True,
    )
    states = optuna.trial.TrialState
    trials = study.trials
    settled = [trial.params for trial in trials if trial.state == states.COMPLETE]
    sweeper.n_trials = max(0, sweeper.n_trials - len(settled))
    settled += [
        trial.system_attrs["fixed_params"] for trial in trials if trial.state == states.WAITING
    ]
    for trial in trials:
        if trial.state == states.RUNNING:  # by a sweep that was killed
            study.tell(trial.number, state=states.FAIL)
        if trial.state in (states.RUNNING, states.FAIL) and trial.params not in settled:
            study.enqueue_trial(trial.params)
            settled.append(trial.params)
