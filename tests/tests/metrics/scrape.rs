//! A scraped page of metrics.

use std::collections::{BTreeMap, BTreeSet};

use podmesh_tests::api::Api;

/// A page: the values by their names with labels, and the types.
pub(crate) struct Scrape {
    values: BTreeMap<String, f64>,
    types: BTreeMap<String, String>,
}

impl Scrape {
    /// Reads the page, and checks its form.
    pub(crate) fn of(api: &Api) -> Self {
        let reply = api.get("/metrics");
        let (status, text) = (reply.status, reply.text());
        assert_eq!(status, 200, "{text}");
        assert!(text.ends_with("# EOF\n"), "{text}");
        let mut page = Self { values: BTreeMap::new(), types: BTreeMap::new() };
        for line in text.lines() {
            if let Some(about) = line.strip_prefix("# TYPE ") {
                let (name, kind) = about.split_once(' ').unwrap();
                assert!(
                    page.types.insert(name.into(), kind.into()).is_none(),
                    "{name} comes twice"
                );
            } else if !line.starts_with('#') {
                let (name, value) = line.rsplit_once(' ').unwrap();
                let value = value.parse().unwrap_or_else(|error| panic!("{line}: {error}"));
                assert!(page.values.insert(name.into(), value).is_none(), "{name} comes twice");
            }
        }
        page
    }

    /// Returns a value by its name with labels.
    pub(crate) fn value(&self, name: &str) -> f64 {
        let found = self.values.get(name);
        *found.unwrap_or_else(|| panic!("{name} is not among {:#?}", self.values.keys()))
    }

    /// Returns the names of the metrics as queries write them: counters with `_total`.
    pub(crate) fn names(&self) -> BTreeSet<String> {
        let name = |(name, kind): (&String, &String)| match kind.as_str() {
            "counter" => format!("{name}_total"),
            _ => name.clone(),
        };
        self.types.iter().map(name).collect()
    }
}
