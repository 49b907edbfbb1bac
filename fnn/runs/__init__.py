"""Runs: networks trained on data that is read from files, kept in folders of their own.

    train(source, settings)   a trained `Run`, as the command `fnn train` makes it
    load(folder)              the run that `Run.save` or the command wrote there
    Settings                  what a run is asked to do; all have defaults
    Run                       predict, evaluate, explain, report, save

Importing this changes no setting of JAX. The command turns x64 off and the PRNG to threefry; so a
run of yours is the command's bit for bit only under JAX's defaults.
"""

from fnn.runs.files import load as load
from fnn.runs.run import Run as Run
from fnn.runs.settings import Settings as Settings
from fnn.runs.training import train as train
