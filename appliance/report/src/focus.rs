//! FOCUS 1.0, the FinOps Open Cost and Usage Specification: what was charged, as CSV.
//!
//! ```text
//!  record ─▶ its bill's lines ─▶ (hour, key, project, function, version, class, line) ─▶ a row: Usage
//!              waived past a budget ───────────────────────────────────────────▶ a row: Credit, negative
//!              version that the book does not hold, or that gives another cost ▶ a row: Usage without quantity and price
//! ```
//!
//! Invariant: the billed costs of all rows add up to what was charged, to the nano-unit. List and contracted cost
//! are price × quantity, as FOCUS has it; each bill rounds its lines up, so the billed cost is above them by less than a nano-unit a
//! request and line. Amounts and quantities are exact to 12 decimals, written with a point always: the validator tells
//! decimals by it. That validator's 1.0 rules know five columns by earlier names, so both stand there; columns of our own begin
//! with `x_`.

use appliance_price::{Book, Line, What, calendar};
use appliance_types::{FunctionName, KeyName, ProjectName, Record};
use std::{collections::BTreeMap, fmt::Write};

const HOUR_MS: u64 = 3_600_000;
const NANO: u128 = 1_000_000_000;
const DECIMALS: u32 = 12;
const PROVIDER: &str = "Ember";

const COLUMNS: [&str; 50] = [
    "AvailabilityZone",
    "BilledCost",
    "BillingAccountId",
    "BillingAccountName",
    "BillingCurrency",
    "BillingPeriodEnd",
    "BillingPeriodStart",
    "ChargeCategory",
    "ChargeClass",
    "ChargeDescription",
    "ChargeFrequency",
    "ChargePeriodEnd",
    "ChargePeriodStart",
    "ChargeType",
    "CommitmentDiscountCategory",
    "CommitmentDiscountId",
    "CommitmentDiscountName",
    "CommitmentDiscountStatus",
    "CommitmentDiscountType",
    "ConsumedQuantity",
    "ConsumedUnit",
    "ContractedCost",
    "ContractedUnitPrice",
    "EffectiveCost",
    "InvoiceIssuer",
    "InvoiceIssuerName",
    "ListCost",
    "ListUnitPrice",
    "PricingCategory",
    "PricingQuantity",
    "PricingUnit",
    "Provider",
    "ProviderName",
    "Publisher",
    "PublisherName",
    "RegionId",
    "RegionName",
    "ResourceID",
    "ResourceId",
    "ResourceName",
    "ResourceType",
    "ServiceCategory",
    "ServiceName",
    "SkuId",
    "SkuPriceId",
    "SubAccountId",
    "SubAccountName",
    "Tags",
    "x_PriceVersion",
    "x_Requests",
];

/// What a row is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Charge {
    Line(What),
    Waived,
    Unexplained,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Group {
    hour_ms: u64,
    key: KeyName,
    project: Option<ProjectName>,
    function: FunctionName,
    price_version: u32,
    batch: bool,
    charge: Charge,
}

#[derive(Clone, Copy, Debug, Default)]
struct Sums {
    requests: u64,
    /// Of what the line counts.
    quantity: u128,
    /// A line's, the same for all of a group.
    price_nanos: u64,
    per: u64,
    cost_nanos: u128,
}

/// Rows, as records come.
#[derive(Debug)]
pub struct Focus<'b> {
    book: &'b Book,
    account: String,
    region: Option<String>,
    rows: BTreeMap<Group, Sums>,
}

impl<'b> Focus<'b> {
    /// No rows yet. `account` is the billing account that they will be of.
    pub fn new(book: &'b Book, account: &str) -> Self {
        Self { book, account: account.to_owned(), region: None, rows: BTreeMap::new() }
    }

    /// The same, of what was used in one region: a box of a fleet.
    pub fn of_region(book: &'b Book, account: &str, region: &str) -> Self {
        Self { region: Some(region.to_owned()), ..Self::new(book, account) }
    }

    /// Counts a record; one that was charged nothing for nothing makes no row.
    pub fn add(&mut self, record: &Record) {
        let bill = self.book.version(record.price_version).map(|prices| prices.bill_of(record));
        let Some(bill) = bill.filter(|bill| bill.cost_nanos == record.cost_nanos) else {
            if record.cost_nanos > 0 {
                let line = Sums { cost_nanos: record.cost_nanos.into(), ..Sums::default() };
                self.count(record, Charge::Unexplained, line);
            }
            return;
        };
        for line in &bill.lines {
            self.count(record, Charge::Line(line.what), of_line(line));
        }
        if bill.waived_nanos > 0 {
            self.count(record, Charge::Waived, Sums { cost_nanos: bill.waived_nanos.into(), ..Sums::default() });
        }
    }

    fn count(&mut self, record: &Record, charge: Charge, line: Sums) {
        let group = Group {
            hour_ms: record.ended_unix_ms / HOUR_MS * HOUR_MS,
            key: record.key.clone(),
            project: record.project.clone(),
            function: record.function.clone(),
            price_version: record.price_version,
            batch: record.batch,
            charge,
        };
        let sums = self.rows.entry(group).or_default();
        sums.requests += 1;
        sums.quantity = sums.quantity.saturating_add(line.quantity);
        (sums.price_nanos, sums.per) = (line.price_nanos, line.per);
        sums.cost_nanos += line.cost_nanos;
    }

    /// Rows so far.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// What all rows bill together, nano-units.
    pub fn billed_nanos(&self) -> u128 {
        let of = |charge| move |(group, _): &(&Group, &Sums)| (group.charge == Charge::Waived) == charge;
        let sum = |waived| self.rows.iter().filter(of(waived)).map(|(_, sums)| sums.cost_nanos).sum::<u128>();
        sum(false) - sum(true)
    }

    /// The file: UTF-8, a header, a row a line, as RFC 4180 has it.
    pub fn to_csv(&self) -> String {
        let mut csv = COLUMNS.join(",") + "\r\n";
        for (group, sums) in &self.rows {
            let row = self.row(group, sums);
            for (index, column) in COLUMNS.iter().enumerate() {
                if index > 0 {
                    csv.push(',');
                }
                if let Some((_, value)) = row.iter().find(|(name, _)| name == column) {
                    csv.push_str(&quoted(value));
                }
            }
            csv.push_str("\r\n");
        }
        csv
    }

    fn row(&self, group: &Group, sums: &Sums) -> Vec<(&'static str, String)> {
        let month = calendar::month(group.hour_ms);
        let text = str::to_owned;
        let category = text(if group.charge == Charge::Waived { "Credit" } else { "Usage" });
        let mut row = vec![
            ("BillingAccountId", self.account.clone()),
            ("BillingAccountName", self.account.clone()),
            ("BillingCurrency", self.book.currency().to_string()),
            ("BillingPeriodStart", time(calendar::month_start_ms(month))),
            ("BillingPeriodEnd", time(calendar::month_start_ms(month + 1))),
            ("ChargePeriodStart", time(group.hour_ms)),
            ("ChargePeriodEnd", time(group.hour_ms.saturating_add(HOUR_MS))),
            ("ChargeCategory", category.clone()),
            ("ChargeType", category),
            ("ChargeDescription", description(group)),
            ("ChargeFrequency", text("Usage-Based")),
            ("ResourceID", group.function.to_string()),
            ("ResourceId", group.function.to_string()),
            ("ResourceName", group.function.to_string()),
            ("ResourceType", text("Function")),
            ("ServiceCategory", text("AI and Machine Learning")),
            ("ServiceName", text("Ember")),
            ("SubAccountId", group.key.to_string()),
            ("SubAccountName", group.key.to_string()),
            ("Tags", tags(group)),
            ("x_PriceVersion", group.price_version.to_string()),
            ("x_Requests", sums.requests.to_string()),
        ];
        for issuer in ["InvoiceIssuer", "InvoiceIssuerName", "Provider", "ProviderName", "Publisher", "PublisherName"] {
            row.push((issuer, text(PROVIDER)));
        }
        for column in ["RegionId", "RegionName"] {
            row.extend(self.region.iter().map(|region| (column, region.clone())));
        }
        row.extend(costs(group, sums));
        row
    }
}

fn of_line(line: &Line) -> Sums {
    Sums {
        requests: 0,
        quantity: u128::from(line.quantity) * u128::from(line.times),
        price_nanos: line.price_nanos,
        per: line.per,
        cost_nanos: line.amount_nanos.into(),
    }
}

/// Costs, and where there is a price, what of.
fn costs(group: &Group, sums: &Sums) -> Vec<(&'static str, String)> {
    let sign = if group.charge == Charge::Waived { "-" } else { "" };
    let billed = format!("{sign}{}", decimal(sums.cost_nanos, NANO));
    let mut costs = vec![("BilledCost", billed.clone()), ("EffectiveCost", billed.clone())];
    let Charge::Line(what) = group.charge else {
        costs.extend([("ListCost", billed.clone()), ("ContractedCost", billed)]);
        if group.charge == Charge::Unexplained {
            let name = "unexplained".to_owned();
            costs.extend([("SkuPriceId", format!("{name}-v{}", group.price_version)), ("SkuId", name)]);
        }
        return costs;
    };
    let (per, price) = (u128::from(sums.per.max(1)), u128::from(sums.price_nanos));
    let listed = decimal(sums.quantity.saturating_mul(price), per * NANO);
    let (name, unit) = names(what);
    let (consumed, consumed_unit) = match what {
        What::TokensIn | What::TokensCached | What::TokensOut => (decimal(sums.quantity, 1), "Tokens"),
        What::Request | What::Memory | What::Cpu => (decimal(sums.quantity, per), unit),
    };
    let class = if group.batch { "-batch" } else { "" };
    costs.extend([
        ("ListCost", listed.clone()),
        ("ContractedCost", listed),
        ("ListUnitPrice", decimal(price, NANO)),
        ("ContractedUnitPrice", decimal(price, NANO)),
        ("PricingCategory", "Standard".to_owned()),
        ("PricingQuantity", decimal(sums.quantity, per)),
        ("PricingUnit", unit.to_owned()),
        ("ConsumedQuantity", consumed),
        ("ConsumedUnit", consumed_unit.to_owned()),
        ("SkuId", name.to_owned()),
        ("SkuPriceId", format!("{name}{class}-v{}", group.price_version)),
    ]);
    costs
}

/// A line's name as a product, and the unit of its price.
fn names(what: What) -> (&'static str, &'static str) {
    match what {
        What::Request => ("request", "Requests"),
        What::Memory => ("memory", "GiB-Seconds"),
        What::Cpu => ("cpu", "Seconds"),
        What::TokensIn => ("tokens-in", "1000 Tokens"),
        What::TokensCached => ("tokens-cached", "1000 Tokens"),
        What::TokensOut => ("tokens-out", "1000 Tokens"),
    }
}

fn description(group: &Group) -> String {
    let function = &group.function;
    match group.charge {
        Charge::Line(what) => format!("{what} of {function}"),
        Charge::Waived => format!("past the budget of {function}'s caller, not charged"),
        Charge::Unexplained => format!("{function}, by prices that are kept no more"),
    }
}

fn tags(group: &Group) -> String {
    let class = if group.batch { "batch" } else { "interactive" };
    let mut tags = serde_json::json!({ "class": class, "function": group.function, "key": group.key });
    if let Some(project) = &group.project {
        tags["project"] = project.as_str().into();
    }
    tags.to_string()
}

fn time(unix_ms: u64) -> String {
    let (year, month, day) = calendar::civil_from_days(calendar::day(unix_ms) as i64);
    let seconds = unix_ms % calendar::DAY_MS / 1_000;
    let (hours, minutes) = (seconds / 3_600, seconds / 60 % 60);
    format!("{year:04}-{month:02}-{day:02}T{hours:02}:{minutes:02}:{:02}Z", seconds % 60)
}

/// A quotient with one decimal at least and [`DECIMALS`] at most, cut there.
fn decimal(dividend: u128, divisor: u128) -> String {
    let mut text = (dividend / divisor).to_string();
    let (mut rest, mut decimals) = (dividend % divisor, String::new());
    for _ in 0..DECIMALS {
        rest *= 10;
        write!(decimals, "{}", rest / divisor).expect("a String takes any text");
        rest %= divisor;
    }
    let kept = decimals.trim_end_matches('0').len().max(1);
    text.push('.');
    text.push_str(&decimals[..kept]);
    text
}

fn quoted(value: &str) -> String {
    if value.contains(['"', ',', '\n', '\r']) {
        format!("\"{}\"", value.replace('"', "\"\""))
    } else {
        value.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{HOUR_MS, record, records};
    use appliance_price::{Prices, TokenPrices};
    use proptest::prelude::*;

    fn csv(book: &Book, records: &[Record]) -> Vec<BTreeMap<String, String>> {
        let mut focus = Focus::new(book, "edge, 7");
        records.iter().for_each(|record| focus.add(record));
        let text = focus.to_csv();
        let mut lines = text.split_terminator("\r\n").map(fields);
        let header = lines.next().unwrap();
        lines.map(|line| header.iter().cloned().zip(line).collect()).collect()
    }

    fn fields(line: &str) -> Vec<String> {
        let (mut fields, mut quoted) = (vec![String::new()], false);
        for letter in line.chars() {
            match letter {
                '"' => quoted = !quoted,
                ',' if !quoted => fields.push(String::new()),
                letter => fields.last_mut().unwrap().push(letter),
            }
        }
        fields
    }

    /// As nano-units; what has more decimals than that is an error.
    fn nanos(text: &str) -> i128 {
        let (sign, digits) = text.strip_prefix('-').map_or((1, text), |digits| (-1, digits));
        sign * i128::from(appliance_price::amount_nanos(digits).unwrap_or_else(|| panic!("{text}")))
    }

    #[test]
    fn a_request_makes_a_row_a_line() {
        let tokens = TokenPrices { tokens_in_1k: 1_000, ..TokenPrices::default() };
        let book = Book::new(vec![Prices { tokens, ..Prices::default() }]).unwrap();
        let mut record = record(0, HOUR_MS, 1_500, 512 << 20);
        book.at(0).charge(&mut record, None);
        let rows = csv(&book, &[record.clone(), record]);
        let of = |sku: &str| rows.iter().find(|row| row["SkuId"] == sku).unwrap_or_else(|| panic!("{sku}: {rows:?}"));
        assert_eq!(rows.len(), 3);
        let memory = of("memory");
        for (column, value) in [
            ("BillingAccountId", "edge, 7"),
            ("BillingPeriodStart", "2026-11-01T00:00:00Z"),
            ("BillingPeriodEnd", "2026-12-01T00:00:00Z"),
            ("ChargePeriodStart", "2026-11-01T01:00:00Z"),
            ("ChargePeriodEnd", "2026-11-01T02:00:00Z"),
            ("PricingQuantity", "1.5"),
            ("PricingUnit", "GiB-Seconds"),
            ("ListUnitPrice", "0.000016667"),
            ("ListCost", "0.0000250005"),
            ("BilledCost", "0.000025002"),
            ("SkuPriceId", "memory-v1"),
            ("x_Requests", "2"),
            ("ChargeClass", ""),
        ] {
            assert_eq!(memory[column], value, "{column}");
        }
        let tokens = of("tokens-in");
        assert_eq!((&*tokens["ConsumedQuantity"], &*tokens["PricingQuantity"]), ("30.0", "0.03"));
        assert_eq!((&*of("request")["BilledCost"], &*of("request")["PricingQuantity"]), ("0.0000004", "2.0"));
    }

    #[test]
    fn what_is_waived_is_a_credit_and_what_is_not_known_has_no_price() {
        let mut capped = record(0, 0, 1_000, 1 << 30);
        Prices::default().charge(&mut capped, Some(10_000));
        let unknown = Record { price_version: 9, cost_nanos: 77, ..record(2, 0, 1_000, 1 << 30) };
        let rows = csv(&Book::default(), &[capped, unknown]);
        let credit = rows.iter().find(|row| row["ChargeCategory"] == "Credit").unwrap();
        assert_eq!((&*credit["BilledCost"], &*credit["SkuId"]), ("-0.000006867", ""));
        let unknown = rows.iter().find(|row| row["x_PriceVersion"] == "9").unwrap();
        assert_eq!((&*unknown["BilledCost"], &*unknown["ListUnitPrice"]), ("0.000000077", ""));
        assert_eq!(unknown["SkuPriceId"], "unexplained-v9");
    }

    proptest! {
        #[test]
        fn rows_add_up_to_what_was_charged(records in records(), forgotten: bool) {
            let prices = Prices { version: if forgotten { 2 } else { 1 }, ..Prices::default() };
            let book = Book::new(vec![prices]).unwrap();
            let charged: u64 = records.iter().map(|record| record.cost_nanos).sum();
            let rows = csv(&book, &records);
            prop_assert_eq!(rows.iter().map(|row| nanos(&row["BilledCost"])).sum::<i128>(), i128::from(charged));
            let mut focus = Focus::new(&book, "a");
            records.iter().for_each(|record| focus.add(record));
            prop_assert_eq!((focus.billed_nanos(), focus.len()), (u128::from(charged), rows.len()));
            for row in &rows {
                let requests: f64 = row["x_Requests"].parse().unwrap();
                let [billed, listed]: [f64; 2] = ["BilledCost", "ListCost"].map(|cost| row[cost].parse::<f64>().unwrap() * 1e9);
                prop_assert!((-0.001..requests + 0.001).contains(&(billed - listed)), "{billed} {listed} {requests}");
            }
        }

        #[test]
        fn quotients_are_cut_and_never_wrong(dividend in 0u128..1 << 100, divisor in 1u128..1 << 80) {
            let text = decimal(dividend, divisor);
            let (whole, decimals) = text.split_once('.').unwrap();
            prop_assert_eq!(whole.parse::<u128>().unwrap(), dividend / divisor);
            prop_assert!((1..=12).contains(&decimals.len()));
        }
    }
}
