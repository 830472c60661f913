//! What lists and watches are asked for besides their selectors.

use fluyt_api::Error;
use fluyt_api::validation::Errors;

use crate::request::Query;

/// `meta.k8s.io` ListOptions of a request.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct ListOptions {
    /// 0: all.
    pub limit: usize,
    pub continue_token: String,
    pub resource_version: String,
    pub resource_version_match: String,
    pub timeout_seconds: Option<u64>,
    pub send_initial_events: Option<bool>,
    pub bookmarks: bool,
}

const EXACT: &str = "Exact";
const NOT_OLDER_THAN: &str = "NotOlderThan";
const MATCH: &str = "resourceVersionMatch";

impl ListOptions {
    /// Of a list.
    ///
    /// # Errors
    /// 400 for what is no number, 422 for what does not go together.
    pub fn of_list(query: &Query) -> Result<Self, Error> {
        let options = Self::parse(query)?;
        let mut errors = Errors::default();
        let wanted = options.resource_version_match.as_str();
        if !wanted.is_empty() {
            if options.resource_version.is_empty() {
                let why = "resourceVersionMatch is forbidden unless resourceVersion is provided";
                errors.forbidden(MATCH, why);
            }
            if !options.continue_token.is_empty() {
                errors.forbidden(MATCH, FORBIDDEN_WITH_CONTINUE);
            }
            if ![EXACT, NOT_OLDER_THAN].contains(&wanted) {
                errors.not_supported(MATCH, &wanted.into(), &[EXACT, NOT_OLDER_THAN, ""]);
            }
            if wanted == EXACT && options.resource_version == "0" {
                let why = "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"";
                errors.forbidden(MATCH, why);
            }
        }
        if options.send_initial_events.is_some() {
            let why = "sendInitialEvents is forbidden for list";
            errors.forbidden("sendInitialEvents", why);
        }
        options.unless(errors)
    }

    /// Of a watch.
    ///
    /// # Errors
    /// As of a list.
    pub fn of_watch(query: &Query) -> Result<Self, Error> {
        let options = Self::parse(query)?;
        let mut errors = Errors::default();
        let wanted = options.resource_version_match.as_str();
        if options.send_initial_events.is_some() && wanted != NOT_OLDER_THAN {
            let why = "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan";
            errors.forbidden(MATCH, why);
        }
        if !wanted.is_empty() {
            if options.send_initial_events.is_none() {
                let why = "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided";
                errors.forbidden(MATCH, why);
            }
            if wanted != NOT_OLDER_THAN {
                errors.not_supported(MATCH, &wanted.into(), &[NOT_OLDER_THAN]);
            }
            if !options.continue_token.is_empty() {
                errors.forbidden(MATCH, FORBIDDEN_WITH_CONTINUE);
            }
        }
        options.unless(errors)
    }

    fn parse(query: &Query) -> Result<Self, Error> {
        let text = |name: &str| query.get(name).unwrap_or_default().to_owned();
        let limit = query.integer("limit")?.unwrap_or_default();
        let seconds = query.integer("timeoutSeconds")?;
        Ok(Self {
            limit: usize::try_from(limit).unwrap_or_default(),
            continue_token: text("continue"),
            resource_version: text("resourceVersion"),
            resource_version_match: text(MATCH),
            timeout_seconds: seconds.and_then(|s| u64::try_from(s).ok()),
            send_initial_events: query
                .get("sendInitialEvents")
                .map(|_| query.flag("sendInitialEvents")),
            bookmarks: query.flag("allowWatchBookmarks"),
        })
    }

    fn unless(self, errors: Errors) -> Result<Self, Error> {
        if errors.is_empty() {
            Ok(self)
        } else {
            Err(Error::invalid("meta.k8s.io", "ListOptions", "", errors.0))
        }
    }

    /// Whether just this version is wanted.
    pub fn is_exact(&self) -> bool {
        self.resource_version_match == EXACT
    }
}

const FORBIDDEN_WITH_CONTINUE: &str = "resourceVersionMatch is forbidden when continue is provided";

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(options: Result<ListOptions, Error>) -> String {
        options.unwrap_err().message
    }

    #[test]
    fn options_must_go_together() {
        let list = |text: &str| ListOptions::of_list(&Query::parse(text));
        let watch = |text: &str| ListOptions::of_watch(&Query::parse(text));
        assert_eq!(list("limit=-1&timeoutSeconds=3").unwrap().limit, 0);
        assert_eq!(
            refused(list("limit=x")),
            "strconv.ParseInt: parsing \"x\": invalid syntax"
        );
        assert_eq!(
            refused(list("resourceVersion=1&resourceVersionMatch=Wrong")),
            "ListOptions.meta.k8s.io \"\" is invalid: resourceVersionMatch: Unsupported value: \"Wrong\": supported values: \"Exact\", \"NotOlderThan\", \"\""
        );
        assert!(list("sendInitialEvents=true").is_err());
        assert!(list("resourceVersion=0&resourceVersionMatch=Exact").is_err());
        let initial = watch("sendInitialEvents=false&resourceVersionMatch=NotOlderThan").unwrap();
        assert_eq!(initial.send_initial_events, Some(false));
        assert!(watch("sendInitialEvents=true").is_err());
        assert!(watch("resourceVersionMatch=NotOlderThan").is_err());
    }
}
