//! `fluyt group`: resource groups.

use clap::Subcommand;
use http::Method;
use serde_json::{Value, json};

use crate::Result;
use crate::arm::Arm;
use crate::output::{Column, Output};

const COLUMNS: &[Column] = &[
    ("Name", "/name"),
    ("Location", "/location"),
    ("Status", "/properties/provisioningState"),
];

#[derive(Subcommand, Debug)]
pub enum Command {
    /// Create a resource group
    Create {
        #[arg(short = 'n', long, visible_short_alias = 'g', visible_aliases = ["resource-group"])]
        name: String,
        #[arg(short = 'l', long, default_value = crate::aks::LOCATION)]
        location: String,
        #[command(flatten)]
        output: Output,
    },
    /// Delete a resource group with all clusters in it
    Delete {
        #[arg(short = 'n', long, visible_short_alias = 'g', visible_aliases = ["resource-group"])]
        name: String,
        /// Do not ask
        #[arg(short, long)]
        yes: bool,
        #[arg(long)]
        no_wait: bool,
    },
    /// List resource groups
    List {
        #[command(flatten)]
        output: Output,
    },
    /// Show a resource group
    Show {
        #[arg(short = 'n', long, visible_short_alias = 'g', visible_aliases = ["resource-group"])]
        name: String,
        #[command(flatten)]
        output: Output,
    },
}

pub async fn run(command: Command) -> Result {
    let arm = Arm::connect()?;
    match command {
        Command::Create {
            name,
            location,
            output,
        } => {
            let answer = arm
                .send(
                    Method::PUT,
                    &arm.group(&name),
                    Some(&json!({"location": location})),
                )
                .await?;
            output.print(&answer.body, COLUMNS)
        }
        Command::Delete { name, yes, no_wait } => {
            if !crate::aks::confirmed_or(yes)? {
                return Ok(());
            }
            let answer = arm.send(Method::DELETE, &arm.group(&name), None).await?;
            if no_wait {
                Ok(())
            } else {
                arm.finish(&answer, "Deleting").await
            }
        }
        Command::List { output } => {
            let list = arm.get(&arm.groups()).await?;
            output.print(list.get("value").unwrap_or(&Value::Null), COLUMNS)
        }
        Command::Show { name, output } => output.print(&arm.get(&arm.group(&name)).await?, COLUMNS),
    }
}
