//! `allotrope graph`: the graph of a step as it would run.

use std::time::Instant;

use allotrope_config::environment::Environment;
use allotrope_engine::graph::text::{dot, launches_of_layer, print_layer};
use allotrope_engine::{EngineError, Plan};
use clap::ArgMatches;

use crate::error::CliError;
use crate::{arguments, model, output};

pub(super) fn run(matches: &ArgMatches, started: Instant, environment: &Environment) -> Result<(), CliError> {
    let options = model::options(matches, environment)?;
    let layer: Option<usize> = matches.get_one(arguments::LAYER).copied();
    let format = matches.get_one::<String>(arguments::FORMAT).map_or(arguments::AIR, String::as_str);
    if format == arguments::HTML && layer.is_some() {
        let message = "--layer does not go with --format html: the page has a filter for layers of its own";
        return Err(CliError::Usage(message.to_owned()));
    }
    let plan = model::builder(matches, options, started).plan()?;
    output::show(match format {
        arguments::HTML => plan.passes_page().map_err(EngineError::from)?,
        arguments::DOT => match layer {
            None => dot(plan.graph(), |_| true),
            Some(layer) => {
                let launches = launches_of_layer(plan.graph(), layer);
                if launches.is_empty() {
                    return Err(no_such_layer(&plan, layer));
                }
                dot(plan.graph(), |launch| launches.contains(&launch))
            }
        },
        _ => match layer {
            None => format!("{}{}", legend(&plan), plan.graph()),
            Some(layer) => {
                let text = print_layer(plan.graph(), layer).ok_or_else(|| no_such_layer(&plan, layer))?;
                format!("{}{text}", legend(&plan))
            }
        },
    })
}

/// What a reader needs to know of the text, as comments.
fn legend(plan: &Plan) -> String {
    format!(
        "; {}: {} operations in {} launches ({} as built)\n\
         ; T: tokens of the batch, S: sequences, R: rows of wanted logits, B: KV blocks of a sequence\n\
         ; a group is one launch; so is an operation outside of groups; docs/ir.md says what each operation does\n",
        plan.title(),
        plan.graph().ops().len(),
        plan.launches(),
        plan.launches_as_built(),
    )
}

fn no_such_layer(plan: &Plan, layer: usize) -> CliError {
    let layers = plan.checkpoint().config().layers;
    let last = layers.saturating_sub(1);
    CliError::Usage(format!("there is no layer {layer}; the model has layers 0 to {last}"))
}
