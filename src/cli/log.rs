use serde_json::json;

use super::Context;
use super::error::{CommandError, exit};
use super::ui::Ui;
use crate::document::json::to_value;
use crate::document::path::printable;

/// Show what happened, newest first: in this clone, and in those whose ledgers were fetched.
#[derive(clap::Args)]
pub struct Args {
    /// Show at most this many records.
    #[arg(short = 'n', long, value_name = "N", default_value_t = 20)]
    max_count: usize,
    /// Show the records of this clone's own ledger only.
    #[arg(long)]
    local: bool,
}

pub fn run(context: &Context<'_>, args: &Args, ui: &mut Ui) -> Result<u8, CommandError> {
    let store = context.store;
    let records = if args.local { store.ledger(args.max_count)? } else { store.history(args.max_count)? };
    if records.is_empty() {
        ui.note("nothing has happened yet: git cbia run");
    }
    let mut told = Vec::new();
    for entry in &records {
        let subject = entry.commit.message.lines().next().unwrap_or_default();
        let (who, when) = identity(&entry.commit.committer);
        ui.line(&format!("{} {when} {} ({})", entry.id.to_hex_with_len(12), printable(subject), printable(&who)));
        told.push(json!({"record": entry.id.to_string(), "committer": entry.commit.committer, "subject": subject, "document": to_value(&entry.record)}));
    }
    ui.result(json!({ "records": told }), &[]);
    Ok(exit::DONE)
}

/// Name and day of a commit's identity line: `Name <address> seconds offset`.
pub fn identity(line: &str) -> (String, String) {
    let name = line.split(" <").next().unwrap_or_default().to_owned();
    let mut end = line.rsplit("> ").next().unwrap_or_default().split(' ');
    let seconds: i64 = end.next().and_then(|s| s.parse().ok()).unwrap_or(0);
    let offset: i64 = end.next().and_then(|s| s.parse().ok()).unwrap_or(0);
    let local = seconds.saturating_add((offset / 100) * 3600 + (offset % 100) * 60);
    (name, day(local.div_euclid(86_400)))
}

/// The civil date of a day counted from 1970-01-01, by the era arithmetic of the proleptic Gregorian calendar.
fn day(days: i64) -> String {
    let shifted = days.saturating_add(719_468);
    let era = shifted.div_euclid(146_097);
    let of_era = shifted.rem_euclid(146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_index = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month_index + 2) / 5 + 1;
    let month = if month_index < 10 { month_index + 3 } else { month_index - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identities_are_read_with_their_own_day() {
        for (line, name, day) in [
            ("A B <a@b> 0 +0000", "A B", "1970-01-01"),
            ("A <a> 951782400 +0000", "A", "2000-02-29"),
            ("A <a> 4107542399 +0000", "A", "2100-02-28"),
            ("A <a> 1767225599 +0100", "A", "2026-01-01"),
            ("A <a> -1 +0000", "A", "1969-12-31"),
        ] {
            assert_eq!(identity(line), (name.to_owned(), day.to_owned()), "{line}");
        }
    }
}
