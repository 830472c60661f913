//! The functions there are: name, what they are called on, and types. One line each, parsed on first use.

use std::collections::HashMap;
use std::sync::LazyLock;

use crate::types::Type;

/// One signature of a function.
#[derive(Debug)]
pub struct Overload {
    /// Called as `x.f()`; the first parameter is `x` then.
    pub member: bool,
    pub params: Vec<Type>,
    pub result: Type,
}

/// All signatures by name.
pub fn overloads(name: &str) -> Option<&'static [Overload]> {
    static TABLE: LazyLock<HashMap<&'static str, Vec<Overload>>> = LazyLock::new(parse_table);
    TABLE.get(name).map(Vec::as_slice)
}

/// Names of types that can stand in expressions.
pub fn is_type_name(name: &str) -> bool {
    const NAMES: [&str; 14] = [
        "bool",
        "int",
        "uint",
        "double",
        "string",
        "bytes",
        "list",
        "map",
        "null_type",
        "type",
        "dyn",
        "optional_type",
        "google.protobuf.Timestamp",
        "google.protobuf.Duration",
    ];
    NAMES.contains(&name)
}

fn parse_table() -> HashMap<&'static str, Vec<Overload>> {
    let mut table: HashMap<&'static str, Vec<Overload>> = HashMap::new();
    for line in DECLARATIONS.lines().filter(|l| !l.is_empty()) {
        let Some((head, result)) = line.rsplit_once(" : ") else {
            continue;
        };
        let Some((name, params)) = head.trim_end_matches(')').split_once('(') else {
            continue;
        };
        let (member, name) = match name.strip_prefix('.') {
            Some(name) => (true, name),
            None => (false, name),
        };
        table.entry(name).or_default().push(Overload {
            member,
            params: split(params).into_iter().map(parse_type).collect(),
            result: parse_type(result),
        });
    }
    table
}

/// Splits at commas outside of angle brackets.
fn split(text: &'static str) -> Vec<&'static str> {
    let (mut parts, mut depth, mut start) = (Vec::new(), 0, 0);
    for (i, c) in text.char_indices() {
        match c {
            '<' => depth += 1,
            '>' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(text[start..i].trim());
                start = i + 1;
            }
            _ => {}
        }
    }
    if !text[start..].trim().is_empty() {
        parts.push(text[start..].trim());
    }
    parts
}

fn parse_type(text: &'static str) -> Type {
    if let Some((outer, inner)) = text.split_once('<') {
        let inner = split(inner.strip_suffix('>').unwrap_or(inner));
        let first = || inner.first().map_or(Type::Dyn, |t| parse_type(t));
        return match outer {
            "list" => Type::list(first()),
            "optional" => Type::optional(first()),
            _ => Type::map(first(), inner.get(1).map_or(Type::Dyn, |t| parse_type(t))),
        };
    }
    match text {
        "dyn" => Type::Dyn,
        "null" => Type::Null,
        "bool" => Type::Bool,
        "int" => Type::Int,
        "uint" => Type::Uint,
        "double" => Type::Double,
        "string" => Type::String,
        "bytes" => Type::Bytes,
        "duration" => Type::Duration,
        "timestamp" => Type::Timestamp,
        "type" => Type::Type,
        "Quantity" => Type::Opaque("kubernetes.Quantity"),
        "IP" => Type::Opaque("net.IP"),
        "CIDR" => Type::Opaque("net.CIDR"),
        "URL" => Type::Opaque("kubernetes.URL"),
        "Format" => Type::Opaque("kubernetes.NamedFormat"),
        "Semver" => Type::Opaque("kubernetes.Semver"),
        "Authorizer" => Type::Opaque("kubernetes.authorization.Authorizer"),
        "PathCheck" => Type::Opaque("kubernetes.authorization.PathCheck"),
        "GroupCheck" => Type::Opaque("kubernetes.authorization.GroupCheck"),
        "ResourceCheck" => Type::Opaque("kubernetes.authorization.ResourceCheck"),
        "Decision" => Type::Opaque("kubernetes.authorization.Decision"),
        param => Type::Param(param.chars().next().unwrap_or('A')),
    }
}

/// `name(parameters) : result`; a leading dot for functions called on their first parameter.
const DECLARATIONS: &str = "
_?_:_(bool, A, A) : A
_&&_(bool, bool) : bool
_||_(bool, bool) : bool
!_(bool) : bool
@not_strictly_false(bool) : bool
_==_(A, A) : bool
_!=_(A, A) : bool
_<_(bool, bool) : bool
_<_(int, int) : bool
_<_(int, double) : bool
_<_(int, uint) : bool
_<_(uint, uint) : bool
_<_(uint, double) : bool
_<_(uint, int) : bool
_<_(double, double) : bool
_<_(double, int) : bool
_<_(double, uint) : bool
_<_(string, string) : bool
_<_(bytes, bytes) : bool
_<_(timestamp, timestamp) : bool
_<_(duration, duration) : bool
_<=_(bool, bool) : bool
_<=_(int, int) : bool
_<=_(int, double) : bool
_<=_(int, uint) : bool
_<=_(uint, uint) : bool
_<=_(uint, double) : bool
_<=_(uint, int) : bool
_<=_(double, double) : bool
_<=_(double, int) : bool
_<=_(double, uint) : bool
_<=_(string, string) : bool
_<=_(bytes, bytes) : bool
_<=_(timestamp, timestamp) : bool
_<=_(duration, duration) : bool
_>_(bool, bool) : bool
_>_(int, int) : bool
_>_(int, double) : bool
_>_(int, uint) : bool
_>_(uint, uint) : bool
_>_(uint, double) : bool
_>_(uint, int) : bool
_>_(double, double) : bool
_>_(double, int) : bool
_>_(double, uint) : bool
_>_(string, string) : bool
_>_(bytes, bytes) : bool
_>_(timestamp, timestamp) : bool
_>_(duration, duration) : bool
_>=_(bool, bool) : bool
_>=_(int, int) : bool
_>=_(int, double) : bool
_>=_(int, uint) : bool
_>=_(uint, uint) : bool
_>=_(uint, double) : bool
_>=_(uint, int) : bool
_>=_(double, double) : bool
_>=_(double, int) : bool
_>=_(double, uint) : bool
_>=_(string, string) : bool
_>=_(bytes, bytes) : bool
_>=_(timestamp, timestamp) : bool
_>=_(duration, duration) : bool
_+_(int, int) : int
_+_(uint, uint) : uint
_+_(double, double) : double
_+_(string, string) : string
_+_(bytes, bytes) : bytes
_+_(list<A>, list<A>) : list<A>
_+_(timestamp, duration) : timestamp
_+_(duration, timestamp) : timestamp
_+_(duration, duration) : duration
_-_(int, int) : int
_-_(uint, uint) : uint
_-_(double, double) : double
_-_(timestamp, timestamp) : duration
_-_(timestamp, duration) : timestamp
_-_(duration, duration) : duration
_*_(int, int) : int
_*_(uint, uint) : uint
_*_(double, double) : double
_/_(int, int) : int
_/_(uint, uint) : uint
_/_(double, double) : double
_%_(int, int) : int
_%_(uint, uint) : uint
-_(int) : int
-_(double) : double
_[_](list<A>, int) : A
_[_](map<A, B>, A) : B
_[_](optional<list<A>>, int) : optional<A>
_[_](optional<map<A, B>>, A) : optional<B>
_[?_](list<A>, int) : optional<A>
_[?_](map<A, B>, A) : optional<B>
_[?_](optional<list<A>>, int) : optional<A>
_[?_](optional<map<A, B>>, A) : optional<B>
@in(A, list<A>) : bool
@in(A, map<A, B>) : bool
dyn(A) : dyn
type(A) : type
size(string) : int
size(bytes) : int
size(list<A>) : int
size(map<A, B>) : int
.size(string) : int
.size(bytes) : int
.size(list<A>) : int
.size(map<A, B>) : int
bool(bool) : bool
bool(string) : bool
int(int) : int
int(uint) : int
int(double) : int
int(string) : int
int(timestamp) : int
uint(uint) : uint
uint(int) : uint
uint(double) : uint
uint(string) : uint
double(double) : double
double(int) : double
double(uint) : double
double(string) : double
string(string) : string
string(bool) : string
string(int) : string
string(uint) : string
string(double) : string
string(bytes) : string
string(timestamp) : string
string(duration) : string
string(IP) : string
string(CIDR) : string
bytes(bytes) : bytes
bytes(string) : bytes
duration(duration) : duration
duration(string) : duration
timestamp(timestamp) : timestamp
timestamp(string) : timestamp
timestamp(int) : timestamp
.contains(string, string) : bool
.startsWith(string, string) : bool
.endsWith(string, string) : bool
.matches(string, string) : bool
matches(string, string) : bool
.getFullYear(timestamp) : int
.getFullYear(timestamp, string) : int
.getMonth(timestamp) : int
.getMonth(timestamp, string) : int
.getDayOfYear(timestamp) : int
.getDayOfYear(timestamp, string) : int
.getDayOfMonth(timestamp) : int
.getDayOfMonth(timestamp, string) : int
.getDate(timestamp) : int
.getDate(timestamp, string) : int
.getDayOfWeek(timestamp) : int
.getDayOfWeek(timestamp, string) : int
.getHours(timestamp) : int
.getHours(timestamp, string) : int
.getHours(duration) : int
.getMinutes(timestamp) : int
.getMinutes(timestamp, string) : int
.getMinutes(duration) : int
.getSeconds(timestamp) : int
.getSeconds(timestamp, string) : int
.getSeconds(duration) : int
.getMilliseconds(timestamp) : int
.getMilliseconds(timestamp, string) : int
.getMilliseconds(duration) : int
.charAt(string, int) : string
.indexOf(string, string) : int
.indexOf(string, string, int) : int
.lastIndexOf(string, string) : int
.lastIndexOf(string, string, int) : int
.indexOf(list<A>, A) : int
.lastIndexOf(list<A>, A) : int
.lowerAscii(string) : string
.upperAscii(string) : string
.replace(string, string, string) : string
.replace(string, string, string, int) : string
.split(string, string) : list<string>
.split(string, string, int) : list<string>
.substring(string, int) : string
.substring(string, int, int) : string
.trim(string) : string
.join(list<string>) : string
.join(list<string>, string) : string
.format(string, list<dyn>) : string
strings.quote(string) : string
.reverse(string) : string
.isSorted(list<int>) : bool
.isSorted(list<double>) : bool
.isSorted(list<string>) : bool
.isSorted(list<bool>) : bool
.isSorted(list<bytes>) : bool
.isSorted(list<timestamp>) : bool
.isSorted(list<duration>) : bool
.sum(list<int>) : int
.sum(list<uint>) : uint
.sum(list<double>) : double
.sum(list<duration>) : duration
.min(list<A>) : A
.max(list<A>) : A
.slice(list<A>, int, int) : list<A>
.flatten(list<A>) : list<dyn>
.flatten(list<A>, int) : list<dyn>
.distinct(list<A>) : list<A>
.reverse(list<A>) : list<A>
.sort(list<A>) : list<A>
lists.range(int) : list<int>
.find(string, string) : string
.findAll(string, string) : list<string>
.findAll(string, string, int) : list<string>
sets.contains(list<A>, list<A>) : bool
sets.equivalent(list<A>, list<A>) : bool
sets.intersects(list<A>, list<A>) : bool
url(string) : URL
isURL(string) : bool
.getScheme(URL) : string
.getHost(URL) : string
.getHostname(URL) : string
.getPort(URL) : string
.getEscapedPath(URL) : string
.getQuery(URL) : map<string, list<string>>
quantity(string) : Quantity
isQuantity(string) : bool
.sign(Quantity) : int
.isInteger(Quantity) : bool
.asInteger(Quantity) : int
.asApproximateFloat(Quantity) : double
.add(Quantity, Quantity) : Quantity
.add(Quantity, int) : Quantity
.sub(Quantity, Quantity) : Quantity
.sub(Quantity, int) : Quantity
.isLessThan(Quantity, Quantity) : bool
.isGreaterThan(Quantity, Quantity) : bool
.compareTo(Quantity, Quantity) : int
ip(string) : IP
isIP(string) : bool
ip.isCanonical(string) : bool
.family(IP) : int
.isUnspecified(IP) : bool
.isLoopback(IP) : bool
.isLinkLocalMulticast(IP) : bool
.isLinkLocalUnicast(IP) : bool
.isGlobalUnicast(IP) : bool
cidr(string) : CIDR
isCIDR(string) : bool
.containsIP(CIDR, string) : bool
.containsIP(CIDR, IP) : bool
.containsCIDR(CIDR, string) : bool
.containsCIDR(CIDR, CIDR) : bool
.ip(CIDR) : IP
.masked(CIDR) : CIDR
.prefixLength(CIDR) : int
format.named(string) : optional<Format>
format.dns1123Label() : Format
format.dns1123Subdomain() : Format
format.dns1035Label() : Format
format.qualifiedName() : Format
format.dns1123LabelPrefix() : Format
format.dns1123SubdomainPrefix() : Format
format.dns1035LabelPrefix() : Format
format.labelValue() : Format
format.uri() : Format
format.uuid() : Format
format.byte() : Format
format.date() : Format
format.datetime() : Format
.validate(Format, string) : optional<list<string>>
semver(string) : Semver
semver(string, bool) : Semver
isSemver(string) : bool
isSemver(string, bool) : bool
.major(Semver) : int
.minor(Semver) : int
.patch(Semver) : int
.isLessThan(Semver, Semver) : bool
.isGreaterThan(Semver, Semver) : bool
.compareTo(Semver, Semver) : int
jsonpatch.escapeKey(string) : string
optional.of(A) : optional<A>
optional.ofNonZeroValue(A) : optional<A>
optional.none() : optional<A>
.hasValue(optional<A>) : bool
.value(optional<A>) : A
.or(optional<A>, optional<A>) : optional<A>
.orValue(optional<A>, A) : A
cel.@mapInsert(map<A, B>, A, B) : map<A, B>
cel.@mapInsert(map<A, B>, map<A, B>) : map<A, B>
.path(Authorizer, string) : PathCheck
.group(Authorizer, string) : GroupCheck
.serviceAccount(Authorizer, string, string) : Authorizer
.check(PathCheck, string) : Decision
.resource(GroupCheck, string) : ResourceCheck
.subresource(ResourceCheck, string) : ResourceCheck
.namespace(ResourceCheck, string) : ResourceCheck
.name(ResourceCheck, string) : ResourceCheck
.fieldSelector(ResourceCheck, string) : ResourceCheck
.labelSelector(ResourceCheck, string) : ResourceCheck
.check(ResourceCheck, string) : Decision
.allowed(Decision) : bool
.reason(Decision) : string
.errored(Decision) : bool
.error(Decision) : string
";
