"""What all recipes share, and how a recipe is written.

A recipe is a file `experiments/NAME.py` of at most 150 lines, which says what is its own:

- a docstring: the paper, the commands, what the numbers are; with a line on `--seeds` and
  `--sweep`, or why it has none;
- `class Config(Splits, SweepOptions)`, or `Options` where many runs at once make no sense: a frozen
  dataclass whose comments are the help of the command line; and `PRESETS`, of which the first is
  the default;
- `load(config) -> data`: reads, makes and checks what the model is trained and measured on;
- `build(config, data) -> Trial`, or several Trials by name: model, start, loss, optimizer, keys.
  What is swept may be an array that JAX traces, so a number of the config may go into a loss, a
  schedule or a distribution, and no `if` asks for it; what JAX computes from the data belongs into
  `load`, or into the function that makes the parameters at the start;
- `measure(config, data, trained) -> (numbers, kept)`, `draw(config, data, trained, kept)`;
- `RECIPE = Recipe(NAME, load, build, measure, draw, NOTE, SMOKE, swept=...)` with these;
- `main = partial(common.main, RECIPE)`: of a config, returns what summary.json holds;
- at the end `common.command_line(main, PRESETS, __doc__)`.

`load` may use `both_splits`, and `draw` may return nothing where `drawable` says no. A recipe whose
flow is another one (several stages, no training by `fit`) uses the parts: `shrunk`, `both_splits`,
`open_folder`, `fit`, `seconds`, `finish`. `experiments/iwae.py` is a short recipe of several
Trials, `experiments/vae.py` one of a single Trial that can be swept.

| file | what |
| --- | --- |
| `options` | `Options`, the command line, `--smoke` |
| `limits`, `words` | what an option may be; the words of a command line |
| `processes` | several processes and devices |
| `folder` | the folder of a run: config.json, summary.json, figures, the report |
| `records` | metrics.jsonl, TensorBoard, the profiler |
| `training` | `fit` and `fit_many`: the library's, with what the options say |
| `recipe` | `Recipe`, `Trial`, `Trained`, `main` |
| `sweep`, `sweep_figures` | many settings and seeds at once |
| `image_vae` | the VAE of images that several recipes train |
| `variations` | that VAE trained in several ways with the same keys |
| `sparse_code`, `dictionary` | sparse codes; data made from a known dictionary |
| `features`, `directions` | what features are worth; directions in the space of codes |
| `one_class`, `fine_tuning` | models of one class and their scores; what was pretrained |
| `planes`, `em_steps`, `estimators` | data of the plane; EM step by step; gradient estimators |
| `diagnoses` | reports of several runs side by side |
| `images` | both splits, their mean, what can be drawn |
| `figures` | the usual pictures of a VAE or an autoencoder; its files: those of a subject |
| `measures` | measures that no module of the library has |
| `judge` | a classifier that says what generated images show |
| `characters`, `sequences`, `sentences` | texts and sequences: data, n-grams, models, pictures |
| `codebook` | the networks of a vector-quantised autoencoder, and pictures of its use |
| `conditions`, `labelled` | images with a condition, and images of which few are labelled |
| `factors` | sprites, and what codes say of their factors |
| `game` | the players of an adversarial game on images |
| `pixels` | images of discrete pixels: networks, simple models, pictures |
| `two_curves` | a known density of the plane; pictures of densities |
"""

from experiments.common import figures, image_vae, measures, variations
from experiments.common.folder import (
    circumstances,
    finish,
    open_folder,
    report,
    save_figures,
    write_json,
    write_text,
)
from experiments.common.images import (
    FEW_IMAGES,
    SOME_IMAGES,
    Splits,
    both_splits,
    check_unit_interval,
    drawable,
    levels_of,
    mean_of,
    scaled,
)
from experiments.common.judge import judge
from experiments.common.limits import check_batch
from experiments.common.options import (
    FREE,
    Options,
    SweepOptions,
    command_line,
    parse,
    shrunk,
)
from experiments.common.processes import first, joined, local, mesh
from experiments.common.recipe import Recipe, Trained, Trial, main, train_trial
from experiments.common.records import event_files, logger, logs, profiler, rows, seconds
from experiments.common.training import (
    LABELS,
    Row,
    falling_adam,
    fit,
    fit_many,
    keys,
    stored,
    together,
    whole_run,
)

__all__ = [
    "FEW_IMAGES",
    "FREE",
    "LABELS",
    "SOME_IMAGES",
    "Options",
    "Recipe",
    "Row",
    "Splits",
    "SweepOptions",
    "Trained",
    "Trial",
    "both_splits",
    "check_batch",
    "check_unit_interval",
    "circumstances",
    "command_line",
    "drawable",
    "event_files",
    "falling_adam",
    "figures",
    "finish",
    "first",
    "fit",
    "fit_many",
    "image_vae",
    "joined",
    "judge",
    "keys",
    "levels_of",
    "local",
    "logger",
    "logs",
    "main",
    "mean_of",
    "measures",
    "mesh",
    "open_folder",
    "parse",
    "profiler",
    "report",
    "rows",
    "save_figures",
    "scaled",
    "seconds",
    "shrunk",
    "stored",
    "together",
    "train_trial",
    "variations",
    "whole_run",
    "write_json",
    "write_text",
]
