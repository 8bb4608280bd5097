//! The built-in functions that a policy may call.

/// Functions whose result depends on their arguments alone, and in which regorus agrees with OPA. What is not here is
/// refused: network, clock, randomness, environment, tokens, and those in which the two engines differ
/// (`json.marshal`, `strings.replace_n`) or print (`print`, `trace`).
pub const ALLOWED: &[&str] = &[
    "abs",
    "array.concat",
    "array.reverse",
    "array.slice",
    "base64.decode",
    "base64.encode",
    "base64.is_valid",
    "bits.and",
    "bits.lsh",
    "bits.negate",
    "bits.or",
    "bits.rsh",
    "bits.xor",
    "ceil",
    "concat",
    "contains",
    "count",
    "endswith",
    "floor",
    "format_int",
    "glob.match",
    "glob.quote_meta",
    "graph.reachable",
    "graph.reachable_paths",
    "hex.decode",
    "hex.encode",
    "indexof",
    "indexof_n",
    "intersection",
    "is_array",
    "is_boolean",
    "is_null",
    "is_number",
    "is_object",
    "is_set",
    "is_string",
    "json.filter",
    "json.is_valid",
    "json.patch",
    "json.remove",
    "lower",
    "max",
    "min",
    "numbers.range",
    "numbers.range_step",
    "object.filter",
    "object.get",
    "object.keys",
    "object.remove",
    "object.subset",
    "object.union",
    "object.union_n",
    "product",
    "regex.find_n",
    "regex.match",
    "regex.replace",
    "regex.split",
    "replace",
    "round",
    "semver.compare",
    "semver.is_valid",
    "sort",
    "split",
    "sprintf",
    "startswith",
    "strings.any_prefix_match",
    "strings.any_suffix_match",
    "strings.count",
    "strings.reverse",
    "substring",
    "sum",
    "to_number",
    "trim",
    "trim_left",
    "trim_prefix",
    "trim_right",
    "trim_space",
    "trim_suffix",
    "type_name",
    "union",
    "units.parse",
    "units.parse_bytes",
    "upper",
];

/// Which argument of a regular-expression function is the pattern.
pub fn pattern_argument(name: &str) -> Option<usize> {
    match name {
        "regex.match" | "regex.split" | "regex.find_n" => Some(0),
        "regex.replace" => Some(1),
        _ => None,
    }
}

/// Why a refused function is refused, where there is more to say than that it is not on the list.
pub fn why_refused(name: &str) -> &'static str {
    match name.split('.').next().unwrap_or_default() {
        "http" | "net" | "providers" => "it reaches the network",
        "time" => "it reads the clock or depends on a time zone database",
        "rand" | "uuid" => "it is random",
        "opa" | "rego" => "it reads the environment or the program's own state",
        "io" | "crypto" => "it is not available in the engine",
        "print" | "trace" => "a policy's decision is its only output",
        "regex" | "walk" | "json" | "strings" | "yaml" | "urlquery" => "engines differ in it",
        _ => "it is not on the list of functions whose result depends on their arguments alone",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_sorted_and_the_engine_has_every_name() {
        assert!(ALLOWED.is_sorted());
        for name in ALLOWED {
            assert!(regorus::unstable::BUILTINS.contains_key(name), "{name}");
        }
    }
}
