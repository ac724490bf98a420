//! `ember budget`: what keys, projects and functions may spend.

use crate::{args::Budget, client::Client, error::Error, output};
use appliance_price::{Budget as Terms, Owner, amount_text};
use serde::Deserialize;

const BUDGETS: &str = "/ember/v1/budgets";

#[derive(Deserialize)]
struct Row {
    of: String,
    hard_nanos: u64,
    soft_nanos: Option<u64>,
    period: String,
    spent_nanos: u64,
    reserved_nanos: u64,
    currency: String,
}

pub(crate) fn command(client: &Client, command: Budget) -> Result<(), Error> {
    match command {
        Budget::Ls(listing) => {
            let data = output::data(client.get(BUDGETS)?);
            output::print(listing, &data, || {
                let rows: Vec<Row> = client.typed(&data)?;
                let header = ["OF", "BUDGET", "SOFT", "SPENT", "RESERVED", "CURRENCY"];
                Ok(output::table(header, rows.iter().map(Row::cells)))
            })
        }
        Budget::Set { of, budget, soft } => {
            let terms = serde_json::to_string(&Terms { soft_nanos: soft, ..budget });
            let terms = terms.expect("a budget is numbers and a word");
            client.put_text(&path(&of), &[("content-type", "application/json")], &terms)?;
            output::note(&format!("{of} may spend {budget}"));
            Ok(())
        }
        Budget::Rm { of } => {
            client.delete(&path(&of))?;
            output::note(&format!("{of} has no budget set any more"));
            Ok(())
        }
    }
}

fn path(of: &Owner) -> String {
    format!("{BUDGETS}/{}", of.to_string().replace(':', "/"))
}

impl Row {
    fn cells(&self) -> [String; 6] {
        let soft = self.soft_nanos.map_or(output::NONE.to_owned(), amount_text);
        let budget = format!("{}/{}", amount_text(self.hard_nanos), self.period);
        let (spent, reserved) = (amount_text(self.spent_nanos), amount_text(self.reserved_nanos));
        [self.of.clone(), budget, soft, spent, reserved, self.currency.clone()]
    }
}
