//! What reports are made of, as the server has it: records page by page, the price book, functions' sizes.

use crate::{client::Client, error::Error, function, output};
use appliance_price::{Book, Prices};
use appliance_report::Size;
use appliance_types::{FunctionName, Record};
use serde::Deserialize;

const RECORDS: &str = "/ember/v1/usage/records";
const PRICES: &str = "/ember/v1/prices";
const FUNCTIONS: &str = "/ember/v1/functions";
/// Records of a page: within the longest reply that is read.
const PAGE: u32 = 5_000;

#[derive(Deserialize)]
struct Named {
    name: FunctionName,
}

#[derive(Deserialize)]
struct Shown {
    manifest: Manifest,
    reserved_bytes: u64,
    reservation_is_measured: bool,
}

#[derive(Deserialize)]
struct Manifest {
    name: FunctionName,
    limits: Limits,
    scale: Scale,
}

#[derive(Deserialize)]
struct Limits {
    cpus: u32,
}

#[derive(Deserialize)]
struct Scale {
    concurrency: u32,
    max: u32,
}

/// Gives `take` each record that ended within `since_ms` until now, or all that there are, in the ledger's order.
pub(crate) fn each(
    client: &Client,
    since_ms: Option<u64>,
    mut take: impl FnMut(&Record) -> Result<(), Error>,
) -> Result<(), Error> {
    let since = since_ms.map_or(String::new(), |ms| format!("&since={ms}ms"));
    let mut after = String::new();
    loop {
        let (page, next) = client.page(&format!("{RECORDS}?limit={PAGE}{since}{after}"))?;
        for line in page.lines() {
            take(&client.parsed(line)?)?;
        }
        match next {
            Some(next) => after = format!("&after={next}"),
            None => return Ok(()),
        }
    }
}

/// All versions of the prices.
pub(crate) fn book(client: &Client) -> Result<Book, Error> {
    let versions: Vec<Prices> = client.typed(&output::data(client.get(PRICES)?))?;
    Book::new(versions)
        .map_err(|error| Error::Reply { url: client.url().to_owned(), reason: format!("no price book: {error:?}") })
}

/// The size of each function that is deployed.
pub(crate) fn sizes(client: &Client) -> Result<Vec<Size>, Error> {
    let names: Vec<Named> = client.typed(&output::data(client.get(FUNCTIONS)?))?;
    let size = |named: Named| {
        let Shown { manifest: Manifest { name, limits, scale }, reserved_bytes, reservation_is_measured } =
            client.typed(&client.get(&function::path(&named.name))?)?;
        Ok(Size {
            function: name,
            memory_bytes: reserved_bytes,
            memory_is_measured: reservation_is_measured,
            cpus: limits.cpus,
            concurrency: scale.concurrency,
            instances_max: scale.max,
        })
    };
    names.into_iter().map(size).collect()
}
