//! Verbs of LLaMA-Factory that this program lacks: what to do instead.

pub(crate) const API: &str = "serve the adapter with vLLM, the end of a run says how; or what `ferrotune export` \
                              writes, with vLLM or Ollama";
pub(crate) const WEBCHAT: &str = "`ferrotune chat recipe.yaml` talks in the terminal; for a browser serve the adapter \
                                  with vLLM, or what `ferrotune export` writes with Ollama";
pub(crate) const EVAL: &str = "`ferrotune train recipe.yaml do_train=false do_eval=true` measures loss and perplexity \
                               on `eval_dataset` or `val_size`; benchmarks run with other programs on what \
                               `ferrotune export` writes";
pub(crate) const WEBUI: &str = "a recipe is a file: write one as in docs/recipe-keys.md and run `ferrotune train \
                                recipe.yaml`; `ferrotune data recipe.yaml` shows what it trains on";
