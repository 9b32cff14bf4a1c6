"""What callbacks are made of: looks at a block in training, plateaus, verdicts, forecasts, decisions, reports.

It never changes weights, optimizers or modules. One file each reads Lightning's private names (`lightning_internals`),
says what the optimizer is (`pace`) and gives verdicts (`judge`).
"""

from relu_diag.training._data import is_epoch_of_all, lately, samples_of, tensors_of
from relu_diag.training._training_data import TrainingData
from relu_diag.training.agreement import agreement, agreement_words, first_order_words
from relu_diag.training.callback import CallbackOfBoth
from relu_diag.training.careful import Careful
from relu_diag.training.chain import along, data_of_chains
from relu_diag.training.checks import (
    check_block,
    check_callable,
    check_count,
    check_flag,
    check_fraction,
    check_iterable,
)
from relu_diag.training.dead_layers import NewNeurons, at_blocks_of_now, for_dead_layers
from relu_diag.training.descent import Descent, descent_of
from relu_diag.training.detector import PlateauChange, PlateauDetector
from relu_diag.training.evidence import Evidence
from relu_diag.training.examination import Examination
from relu_diag.training.examine import examine_pass, examine_rows, location_of
from relu_diag.training.examiner import Examiner
from relu_diag.training.felt import data_of, growth_gain, signal_of, some_rows
from relu_diag.training.gap import against_growing, coupled_decay, decays, gap_in_training, gap_with_decay, tell_gap
from relu_diag.training.growths import Growth
from relu_diag.training.history import HistoryRecorder, LossCurve, Moment
from relu_diag.training.judge import (
    MINIMA,
    VERDICT_CODES,
    Training,
    escape_count,
    judge,
    search_size,
    verdict_in_training,
    why_unsettled,
)
from relu_diag.training.jumps import LossJumps
from relu_diag.training.lightning_internals import (
    batches_done_in_epoch,
    device_batches,
    epochs_completed,
    logged_metric,
    loss_scale,
    show_in_bar,
    shows_final_metric,
    steps_logged,
    write_past_bar,
)
from relu_diag.training.loggers import is_mlflow, is_tensorboard, is_wandb
from relu_diag.training.look import BatchSignal, Look, LossFunction, targets_of
from relu_diag.training.moves import Escape, lowest_along, trained_loss
from relu_diag.training.new_places import NewPlaces
from relu_diag.training.obstacle import obstacle_of, reads_activations
from relu_diag.training.pace import (
    NoForecast,
    Pace,
    Schedule,
    Stretch,
    check_unclipped,
    gradient_share,
    is_plain_descent,
    schedule_of,
    why_still,
)
from relu_diag.training.penalty import climbing, decaying, largest_weight_decay, penalty_of, penalty_on
from relu_diag.training.plateaus import (
    EventKind,
    Plateau,
    PlateauEvent,
    PlateauForecast,
    PlateauListener,
    listeners,
    marks_of,
)
from relu_diag.training.promising import growth_order, growth_prospects, most_promising_first
from relu_diag.training.ranks import (
    FailedElsewhereError,
    Later,
    agree,
    of_all_ranks,
    of_first_rank,
    off_together,
    on_all_ranks,
)
from relu_diag.training.recipe import Recipe, factor_between
from relu_diag.training.report import Report, say
from relu_diag.training.revival import BlockRevival, Revival
from relu_diag.training.rider import Rider
from relu_diag.training.rows import KeptRows
from relu_diag.training.stopping import Decision, stop_or_wait
from relu_diag.training.story import STORY, event_line, first_few, story_rows, tell, tell_event, text_table
from relu_diag.training.stream import LossStream
from relu_diag.training.watch import BlockWatch
from relu_diag.training.widening import choose_widening
from relu_diag.training.widening_choice import NoWidening, WideningChoice
from relu_diag.training.window import BlockReport, Window

__all__ = [
    "MINIMA",
    "STORY",
    "VERDICT_CODES",
    "BatchSignal",
    "BlockReport",
    "BlockRevival",
    "BlockWatch",
    "CallbackOfBoth",
    "Careful",
    "Decision",
    "Descent",
    "Escape",
    "EventKind",
    "Evidence",
    "Examination",
    "Examiner",
    "FailedElsewhereError",
    "Growth",
    "HistoryRecorder",
    "KeptRows",
    "Later",
    "Look",
    "LossCurve",
    "LossFunction",
    "LossJumps",
    "LossStream",
    "Moment",
    "NewNeurons",
    "NewPlaces",
    "NoForecast",
    "NoWidening",
    "Pace",
    "Plateau",
    "PlateauChange",
    "PlateauDetector",
    "PlateauEvent",
    "PlateauForecast",
    "PlateauListener",
    "Recipe",
    "Report",
    "Revival",
    "Rider",
    "Schedule",
    "Stretch",
    "Training",
    "TrainingData",
    "WideningChoice",
    "Window",
    "against_growing",
    "agree",
    "agreement",
    "agreement_words",
    "along",
    "at_blocks_of_now",
    "batches_done_in_epoch",
    "check_block",
    "check_callable",
    "check_count",
    "check_flag",
    "check_fraction",
    "check_iterable",
    "check_unclipped",
    "choose_widening",
    "climbing",
    "coupled_decay",
    "data_of",
    "data_of_chains",
    "decaying",
    "decays",
    "descent_of",
    "device_batches",
    "epochs_completed",
    "escape_count",
    "event_line",
    "examine_pass",
    "examine_rows",
    "factor_between",
    "first_few",
    "first_order_words",
    "for_dead_layers",
    "gap_in_training",
    "gap_with_decay",
    "gradient_share",
    "growth_gain",
    "growth_order",
    "growth_prospects",
    "is_epoch_of_all",
    "is_mlflow",
    "is_plain_descent",
    "is_tensorboard",
    "is_wandb",
    "judge",
    "largest_weight_decay",
    "lately",
    "listeners",
    "location_of",
    "logged_metric",
    "loss_scale",
    "lowest_along",
    "marks_of",
    "most_promising_first",
    "obstacle_of",
    "of_all_ranks",
    "of_first_rank",
    "off_together",
    "on_all_ranks",
    "penalty_of",
    "penalty_on",
    "reads_activations",
    "samples_of",
    "say",
    "schedule_of",
    "search_size",
    "show_in_bar",
    "shows_final_metric",
    "signal_of",
    "some_rows",
    "steps_logged",
    "stop_or_wait",
    "story_rows",
    "targets_of",
    "tell",
    "tell_event",
    "tell_gap",
    "tensors_of",
    "text_table",
    "trained_loss",
    "verdict_in_training",
    "why_still",
    "why_unsettled",
    "write_past_bar",
]
