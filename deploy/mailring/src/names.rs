//! Names as an operator types them, to the form in which the directory keeps them: domains in ASCII (A-labels,
//! RFC 5891), since that is what arrives in most mail transactions.

use anyhow::anyhow;
use types::{AccountName, DomainName};

use crate::failure::Failure;

pub fn domain(text: &str) -> Result<DomainName, Failure> {
    let wrong = |reason: String| Failure::Usage(anyhow!("domain {text:?}: {reason}"));
    let ascii = idna::domain_to_ascii(text.strip_suffix('.').unwrap_or(text))
        .map_err(|_| wrong("not a valid internationalised domain name".to_owned()))?;
    DomainName::parse(&ascii).map_err(|e| wrong(e.to_string()))
}

/// `local@domain`, of an account or an alias.
pub fn account(text: &str) -> Result<AccountName, Failure> {
    let wrong = |reason: String| Failure::Usage(anyhow!("account {text:?}: {reason}"));
    let (local, domain_text) = text.rsplit_once('@').ok_or_else(|| wrong("not of the form local@domain".to_owned()))?;
    AccountName::new(local, &domain(domain_text)?).map_err(|e| wrong(e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::{account, domain};

    #[test]
    fn unicode_domains_are_kept_in_ascii() {
        assert_eq!(domain("Bücher.Example.").unwrap().as_str(), "xn--bcher-kva.example");
        assert_eq!(account("Info@BÜCHER.example").unwrap().as_str(), "info@xn--bcher-kva.example");
        assert_eq!(account("*@example.test").unwrap().local(), "*");
    }

    #[test]
    fn bad_names_are_wrong_usage_and_are_quoted() {
        for bad in ["", "a", "a@", "@b.test", "a b@c.test", "a@b..test", "../x", "a\0@b.test", "a@-b.test"] {
            let failure = account(bad).unwrap_err().to_string();
            assert!(
                failure.contains(&format!("{:?}", bad.rsplit('@').next().unwrap()))
                    || failure.contains(&format!("{bad:?}")),
                "{failure}"
            );
        }
        assert!(account(&format!("{}@b.test", "a".repeat(1 << 20))).is_err());
    }
}
