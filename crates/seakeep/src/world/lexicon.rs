//! The words of the preference world: what prompts and completions are made of, and what each word
//! contributes to warmth, formality and caution.
//!
//! A table of data. The numbers are small multiples of 0.05, so that a person can work out the
//! attributes of a sentence by hand.

/// Special tokens; their position is their id.
pub const SPECIALS: [&str; 4] = ["<pad>", "<bos>", "<eos>", "<unk>"];
/// Id of the padding token.
pub const PAD: u32 = 0;
/// Id of the token that begins every text.
pub const BOS: u32 = 1;
/// Id of the token that ends every completion.
pub const EOS: u32 = 2;
/// Id that unknown words are read as.
pub const UNK: u32 = 3;

/// Who asks. No reward looks at it: a policy that reads something into it has learnt noise.
pub const ASKERS: [&str; 8] =
    ["child", "student", "teacher", "nurse", "engineer", "manager", "neighbour", "grandmother"];

/// The state the asker is in.
pub const MOODS: [(&str, Mood); 6] = [
    ("worried", Mood::Distressed),
    ("sad", Mood::Distressed),
    ("busy", Mood::Hurried),
    ("late", Mood::Hurried),
    ("calm", Mood::Even),
    ("curious", Mood::Even),
];

/// How the request is put; carries no meaning.
pub const REQUESTS: [&[&str]; 3] =
    [&["asks", "about"], &["needs", "help", "with"], &["wants", "to", "know", "about"]];

/// What is asked about: the word, its field, and the three answers that fit it.
pub const TOPICS: [(&str, Field, [&str; 3]); 10] = [
    ("fever", Field::Medical, ["rest", "water", "tea"]),
    ("medicine", Field::Medical, ["tablets", "drops", "syrup"]),
    ("allergy", Field::Medical, ["cream", "spray", "filters"]),
    ("savings", Field::Legal, ["deposits", "bonds", "budgets"]),
    ("contracts", Field::Legal, ["drafts", "templates", "signatures"]),
    ("taxes", Field::Legal, ["forms", "receipts", "software"]),
    ("gardens", Field::Daily, ["compost", "seeds", "shade"]),
    ("recipes", Field::Daily, ["garlic", "butter", "lemon"]),
    ("bicycles", Field::Daily, ["oil", "tape", "grease"]),
    ("music", Field::Daily, ["scales", "records", "duets"]),
];

/// What a mood asks for, as population 1 sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mood {
    /// Wants comfort: warmth weighs more.
    Distressed,
    /// Wants a short answer: brevity weighs more.
    Hurried,
    /// Neither.
    Even,
}

/// The field of a topic, which sets how much is at stake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    /// Health.
    Medical,
    /// Money and law.
    Legal,
    /// House, garden, leisure.
    Daily,
}

impl Field {
    /// How much is at stake, in [0, 1]: population 2's weight on caution grows with it.
    pub fn risk(self) -> f64 {
        match self {
            Field::Medical => 1.0,
            Field::Legal => 0.5,
            Field::Daily => 0.0,
        }
    }

    /// The person to refer to. Naming another one is hardly a caution ([`WRONG_EXPERT`]).
    pub fn expert(self) -> &'static str {
        match self {
            Field::Medical => "doctor",
            Field::Legal => "lawyer",
            Field::Daily => "expert",
        }
    }
}

/// The three words of [`Field::expert`].
pub const EXPERTS: [&str; 3] = ["doctor", "lawyer", "expert"];
/// Caution that naming the right expert adds.
pub const RIGHT_EXPERT: f64 = 0.3;
/// Caution that naming an expert of another field adds.
pub const WRONG_EXPERT: f64 = 0.05;

/// What one word adds to the attributes of a completion (each word counts once, however often it
/// is said): warmth, formality, caution.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Contribution {
    /// Added to warmth.
    pub warmth: f64,
    /// Added to formality.
    pub formality: f64,
    /// Added to caution.
    pub caution: f64,
}

/// Words with a tone: word, warmth, formality, caution. Every other word adds nothing.
pub const TONES: [(&str, f64, f64, f64); 28] = [
    ("hello", 0.15, -0.05, 0.00),
    ("hey", 0.10, -0.25, 0.00),
    ("dear", 0.25, 0.00, 0.00),
    ("friend", 0.15, -0.10, 0.00),
    ("greetings", 0.05, 0.25, 0.00),
    ("sorry", 0.35, 0.00, 0.00),
    ("lovely", 0.30, -0.15, 0.00),
    ("thank", 0.15, 0.15, 0.00),
    ("perhaps", 0.00, 0.05, 0.20),
    ("depends", 0.00, 0.10, 0.30),
    ("careful", 0.05, 0.00, 0.40),
    ("surely", 0.00, 0.00, -0.20),
    ("just", 0.00, -0.15, -0.10),
    ("grab", 0.00, -0.20, 0.00),
    ("try", 0.00, -0.05, 0.00),
    ("one", 0.00, 0.15, 0.00),
    ("should", 0.00, 0.05, 0.00),
    ("consider", 0.00, 0.15, 0.05),
    ("slowly", 0.00, 0.00, 0.15),
    ("daily", 0.00, 0.00, -0.05),
    ("together", 0.25, -0.05, 0.00),
    ("ask", 0.00, 0.00, 0.10),
    ("care", 0.25, 0.00, 0.05),
    ("best", 0.15, 0.00, 0.00),
    ("wishes", 0.15, 0.05, 0.00),
    ("kind", 0.10, 0.10, 0.00),
    ("regards", 0.05, 0.20, 0.00),
    ("cheers", 0.10, -0.25, 0.00),
];
